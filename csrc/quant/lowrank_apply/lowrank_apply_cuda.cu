// SPDX-License-Identifier: Apache-2.0
// lowrank_apply on CUDA: both products in tiles of 32 x 32, on the cores for float32, whose sums have the
// CPU's order and bits. For few rows the chunks of K are shared among blocks, and a small launch adds them.
#include "core/launch.cuh"
#include "quant/lowrank_apply/lowrank_apply_math.h"

namespace fastdiff::lowrank_apply {
namespace {

constexpr int kTile = 32;  // rows and columns of C, and steps at a time
constexpr int kThreads = 256;
constexpr int kGroups = kThreads / kTile,
              kOwn = kTile / kGroups;  // a thread's rows: its group, + kGroups, ...

__device__ int at_most_of(int most, int64_t rest) {
  return rest < most ? static_cast<int>(rest) : most;
}

template <class T>
struct Tiles {
  T a[kTile][kTile + 1], b[kTile][kTile + 1];
};

// total[i] += the products of at most kChunk steps. a(row, step) and b(column, step) with numbers in the
// tile.
template <class T, class A, class B>
__device__ void add_chunk(Tiles<T>& tiles, int rows, int columns, int steps, const A& a, const B& b,
                          T (&total)[kOwn]) {
  const int lane = static_cast<int>(threadIdx.x) % kTile, group = static_cast<int>(threadIdx.x) / kTile;
  T sum[kOwn] = {};
  for (int first = 0; first < steps; first += kTile) {
    const int count = min(kTile, steps - first);
    for (int n = group; n < kTile; n += kGroups) {
      tiles.a[n][lane] = n < rows && lane < count ? a(n, first + lane) : T(0);
      tiles.b[n][lane] = n < columns && lane < count ? b(n, first + lane) : T(0);
    }
    __syncthreads();
    for (int s = 0; s < count; ++s)
      for (int i = 0; i < kOwn; ++i) sum[i] = fma_(tiles.a[group + i * kGroups][s], tiles.b[lane][s], sum[i]);
    __syncthreads();
  }
  for (int i = 0; i < kOwn; ++i) total[i] = total[i] + sum[i];
}

template <class T>
__device__ T element(const Factor& f, int64_t step, int64_t column) {
  return load_as<T>(f.data, f.dtype, step * f.step + column * f.column);
}

__device__ int64_t at(const Params& p, const Rows& rows, int64_t row) {
  return row_at(p, rows, row / p.rows_of_sample, row % p.rows_of_sample);
}

// to[part][row][rank]: the sum of one chunk, or, of a single part, p.
template <class T>
__global__ void __launch_bounds__(kThreads) shrink(const Params p, int64_t parts, T* to) {
  __shared__ Tiles<T> tiles;
  const int64_t across = (p.rank + kTile - 1) / kTile, rows = p.rows();
  const int64_t column = blockIdx.x % across * kTile, part = blockIdx.x / across % parts;
  const int64_t row = blockIdx.x / across / parts * kTile;
  const int some_rows = at_most_of(kTile, rows - row);
  const int columns = at_most_of(kTile, p.rank - column);
  const int64_t chunks = chunks_of(p.inputs);
  T total[kOwn] = {};
  for (int64_t chunk = part; chunk < chunks; chunk += parts) {
    const int64_t first = chunk * kChunk;
    const int steps = at_most_of(kChunk, p.inputs - first);
    add_chunk(
        tiles, some_rows, columns, steps,
        [&](int n, int s) {
          return load_as<T>(p.x.at.data, p.x.at.dtype, at(p, p.x, row + n) + (first + s) * p.x.column);
        },
        [&](int n, int s) { return element<T>(p.down, first + s, column + n); }, total);
  }
  const int lane = static_cast<int>(threadIdx.x) % kTile, group = static_cast<int>(threadIdx.x) / kTile;
  for (int i = 0; i < kOwn; ++i) {
    const int n = group + i * kGroups;
    if (n >= some_rows || lane >= columns) continue;
    const int64_t b = (row + n) / p.rows_of_sample, j = column + lane;
    to[(part * rows + row + n) * p.rank + j] = parts == 1 ? gated(p, b, j, total[i]) : total[i];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_chunks(const Params p, const T* sums, T* to) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, all = p.rows() * p.rank;
  if (n >= all) return;
  T sum = T(0);
  for (int64_t chunk = 0; chunk < chunks_of(p.inputs); ++chunk) sum = sum + sums[chunk * all + n];
  to[n] = gated(p, n / p.rank / p.rows_of_sample, n % p.rank, sum);
}

template <class T>
__device__ void finish(const Params& p, int64_t row, int64_t n, T y) {
  const int64_t b = row / p.rows_of_sample;
  if (p.mu.data != nullptr)
    y = fma_(p.b.data != nullptr ? number<T>(p.b, b, 0) : T(1), number<T>(p.mu, 0, n), y);
  if (p.base.at.data != nullptr)
    y = y + load_as<T>(p.base.at.data, p.base.at.dtype, at(p, p.base, row) + n * p.base.column);
  if (p.a.data != nullptr)
    y = fma_(number<T>(p.a, b, 0), load_as<T>(p.x.at.data, p.x.at.dtype, at(p, p.x, row) + n * p.x.column),
             y);
  store_as(p.y.at.data, p.y.at.dtype, at(p, p.y, row) + n * p.y.column, y);
}

template <class T>
__global__ void __launch_bounds__(kThreads) expand(const Params p, const T* from) {
  __shared__ Tiles<T> tiles;
  const int64_t across = (p.outputs + kTile - 1) / kTile;
  const int64_t column = blockIdx.x % across * kTile, row = blockIdx.x / across * kTile;
  const int rows = at_most_of(kTile, p.rows() - row);
  const int columns = at_most_of(kTile, p.outputs - column);
  T total[kOwn] = {};
  for (int64_t first = 0; first < p.rank; first += kChunk)
    add_chunk(
        tiles, rows, columns, at_most_of(kChunk, p.rank - first),
        [&](int n, int s) { return from[(row + n) * p.rank + first + s]; },
        [&](int n, int s) { return element<T>(p.up, first + s, column + n); }, total);
  const int lane = static_cast<int>(threadIdx.x) % kTile, group = static_cast<int>(threadIdx.x) / kTile;
  for (int i = 0; i < kOwn; ++i)
    if (group + i * kGroups < rows && lane < columns)
      finish(p, row + group + i * kGroups, column + lane, total[i]);
}

int64_t tiles_of(int64_t n) {
  return (n + kTile - 1) / kTile;
}

template <class T>
void launch_as(const Params& p, T* scratch, cudaStream_t stream) {
  const dim3 block(kThreads);
  const bool is_shared = p.rows() <= kFewRows && chunks_of(p.inputs) > 1;
  if (p.rank > 0) {
    const int64_t parts = is_shared ? chunks_of(p.inputs) : 1;
    T* const sums = is_shared ? scratch + p_numel(p) : scratch;
    launch(&shrink<T>, dim3(blocks_for(tiles_of(p.rows()) * parts * tiles_of(p.rank), 1)), block, 0, stream,
           p, parts, sums);
    if (is_shared)
      launch(&add_chunks<T>, dim3(blocks_for(p.rows() * p.rank, kThreads)), block, 0, stream, p,
             static_cast<const T*>(sums), scratch);
  }
  launch(&expand<T>, dim3(blocks_for(tiles_of(p.rows()) * tiles_of(p.outputs), 1)), block, 0, stream, p,
         static_cast<const T*>(scratch));
}

}  // namespace

void launch_cuda(const Params& params, void* scratch, int device, void* stream) {
  const OnDevice on(device);
  if (params.wide) {
    launch_as(params, static_cast<double*>(scratch), static_cast<cudaStream_t>(stream));
  } else {
    launch_as(params, static_cast<float*>(scratch), static_cast<cudaStream_t>(stream));
  }
}

}  // namespace fastdiff::lowrank_apply

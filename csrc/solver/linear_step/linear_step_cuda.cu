// SPDX-License-Identifier: Apache-2.0
// linear_step on CUDA: one pass, every input read once, every stored row written once.
//
// A block serves one sample. It brings the coefficients of its step into shared memory and walks the sample
// with a grid stride. Two kernels:
//   quads     the layouts of model code: dense, aligned operands, float arithmetic, up to kQuadInputs inputs,
//             no gate and no maps. A thread takes four elements a turn, the unit of a 16-byte load and of a
//             Philox block, and issues all its loads before the first use: memory is the only limit.
//   elements  everything else: any strides and counts, gates, maps, double. One element a turn, rolled loops.
#include <algorithm>

#include "core/launch.cuh"
#include "core/walk.cuh"
#include "solver/linear_step/linear_step_math.h"

namespace fastdiff::linear_step {
namespace {

constexpr int kThreads = 256;
constexpr int kQuadInputs = 8;
constexpr int64_t kBlocksPerProcessor = 8;     // enough to fill it; more would only repeat the prologue
constexpr int64_t kMaxSamplesPerGrid = 65535;  // gridDim.y

// The coefficients of a block's step and sample, the noise column already scaled.
template <class T>
struct Coefficients {
  T c[kMaxRows][kMaxColumns];
  T gate_c[kMaxRows][kMaxInputs + kMaxRows + 1];
};

// The step, or a stop of the kernel: nothing may be read past the table, nothing written on error.
__device__ __forceinline__ int64_t checked_step(const Settings& p) {
  const int64_t step = p.step ? *p.step : 0;
  if (step < 0 || step >= p.steps) device_refusal("fastdiff::linear_step: step is outside the table");
  return step;
}

template <class T>
__device__ void load_coefficients(const Settings& p, int64_t step, int64_t sample, Coefficients<T>& shared) {
  const int columns = p.inputs + p.rows + 3, noise = p.inputs + p.rows;
  for (int e = threadIdx.x; e < p.rows * columns; e += blockDim.x) {
    const int row = e / columns, column = e % columns;
    const T scale = column == noise ? static_cast<T>(noise_scale(p.complex)) : T(1);
    const T c = scale * coefficient<T>(p.table, step, sample, row, column);
    const bool gates = p.gate_table.data && column <= noise;
    const T gate_c = gates ? scale * coefficient<T>(p.gate_table, step, sample, row, column) : T(0);
    if (column == noise && !p.rng && (c != T(0) || gate_c != T(0)))
      device_refusal(
          "fastdiff::linear_step: rng is needed: the table's noise column is not zero at this step");
    shared.c[row][column] = c;
    if (column <= noise) shared.gate_c[row][column] = gate_c;
  }
}

// ---- quads ----------------------------------------------------------------------------------------

struct Quad {
  float at[kQuad];
};

// Params without what quads have no use for: kernel arguments cost launch time by the byte.
struct QuadParams : Settings {
  struct Stream {
    char* data;
    int64_t sample_bytes;
    DType dtype;

    __device__ char* of(int64_t sample) const { return data + sample * sample_bytes; }
  };
  Stream input[kQuadInputs], output[kMaxRows];
};

__device__ __forceinline__ void add_quad(Quad& sum, float c, const Quad& x) {
  for (int j = 0; j < kQuad; ++j) sum.at[j] = add_term(sum.at[j], c, x.at[j]);
}

template <int kInputs>
__global__ void __launch_bounds__(kThreads) linear_step_quads(const QuadParams p, int64_t first_sample) {
  __shared__ Coefficients<float> coefficients;
  const int64_t sample = first_sample + blockIdx.y;
  const int64_t step = checked_step(p);
  load_coefficients(p, step, sample, coefficients);
  __syncthreads();

  const int noise = p.inputs + p.rows;
  bool uses_noise = false;
  bool is_used[kInputs] = {};
  for (int i = 0; i < p.rows; ++i) {
    uses_noise |= coefficients.c[i][noise] != 0.0f;
#pragma unroll
    for (int k = 0; k < kInputs; ++k) is_used[k] |= k < p.inputs && coefficients.c[i][k] != 0.0f;
  }
  const NoiseKey key = uses_noise ? noise_key(p, step, sample) : NoiseKey{0, 0};
  const int64_t first_block = sample * p.index.sample_stride / kQuad;

  const int64_t quads = p.numel / kQuad, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t quad = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; quad < quads;
       quad += stride) {
    Quad x[kInputs];
#pragma unroll
    for (int k = 0; k < kInputs; ++k)
      if (is_used[k]) load_quad(p.input[k].of(sample), p.input[k].dtype, kQuad * quad, x[k].at);
    Quad z{};
    if (uses_noise) {
      const auto block = static_cast<uint64_t>(first_block + quad);
      normal_block(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), key, z.at);
    }
    Quad y[kMaxRows];
#pragma unroll
    for (int i = 0; i < kMaxRows; ++i) {
      if (i >= p.rows) break;
      const float* c = coefficients.c[i];
      bool empty = true;
      for (int j = 0; j < kQuad; ++j) y[i].at[j] = empty_sum<float>();
      const auto add = [&](int column, const Quad& term) {
        if (c[column] == 0.0f) return;
        empty = false;
        add_quad(y[i], c[column], term);
      };
#pragma unroll
      for (int k = 0; k < kInputs; ++k)
        if (k < p.inputs) add(k, x[k]);
#pragma unroll
      for (int j = 0; j < i; ++j) add(p.inputs + j, y[j]);
      add(noise, z);
      for (int j = 0; j < kQuad; ++j)
        y[i].at[j] = clamp(empty ? 0.0f : y[i].at[j], c[noise + 1], c[noise + 2]);
    }
    // Stores come last: an output may be one of the inputs.
#pragma unroll
    for (int i = 0; i < kMaxRows; ++i)
      if (i < p.rows && p.output[i].data)
        store_quad(p.output[i].of(sample), p.output[i].dtype, kQuad * quad, y[i].at);
  }
}

bool fits_quads(const Operand& operand, int64_t samples) {
  return has_quads(operand.data, part_of(operand.dtype), 1, operand.stride, samples, operand.sample_stride);
}

bool fits_quads(const Params& p) {
  if (p.compute_double || p.gate_table.data || p.map.data || p.dims != 1 || p.inputs > kQuadInputs ||
      p.numel % kQuad)
    return false;
  for (int k = 0; k < p.inputs; ++k)
    if (!fits_quads(p.input[k], p.samples)) return false;
  for (int i = 0; i < p.rows; ++i)
    if (p.output[i].data && !fits_quads(p.output[i], p.samples)) return false;
  return !p.rng || (p.index.dims == 1 && p.index.stride[0] == 1 && p.index.sample_stride % kQuad == 0);
}

QuadParams::Stream stream_of(const Operand& operand) {
  const DType part = part_of(operand.dtype);
  return {static_cast<char*>(operand.data), operand.sample_stride * size_of(part), part};
}

// ---- elements -------------------------------------------------------------------------------------

// One element of a sample. Offsets are taken anew for each operand: this kernel saves registers.
template <class Index>
struct Place {
  const Params& p;
  int64_t sample;
  Index element;

  __device__ int64_t offset(const Operand& operand) const {
    return sample * operand.sample_stride + offset_of(element, p.dims, p.size, operand.stride);
  }
  __device__ int64_t offset(const Walk& walk) const {
    return sample * walk.sample_stride + offset_of(element, walk.dims, walk.size, walk.stride);
  }

  template <class T>
  __device__ T load(const Operand& operand) const {
    return load_as<T>(operand.data, operand.dtype, offset(operand));
  }
  template <class T>
  __device__ T load(const Side& side, int64_t skip = 0) const {
    return load_as<T>(side.data, side.dtype, skip + offset(side.walk));
  }

  // The gate's weight: the mask's value inside the channel range, 0 outside.
  template <class T>
  __device__ T gate() const {
    if (p.channel.dims) {
      const int64_t channel = offset(p.channel);
      if (channel < p.channel_begin || channel >= p.channel_end) return T(0);
    }
    return p.mask.data ? load<T>(p.mask) : T(1);
  }

  __device__ float normal(NoiseKey key) const {
    const auto index = static_cast<uint64_t>(offset(p.index));
    return normal_at(static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), key);
  }
};

template <class T, class Index>
__global__ void __launch_bounds__(kThreads) linear_step_elements(const Params p, int64_t first_sample) {
  __shared__ Coefficients<T> coefficients;
  const int64_t sample = first_sample + blockIdx.y;
  const int64_t step = checked_step(p);
  load_coefficients(p, step, sample, coefficients);
  __syncthreads();

  const int noise = p.inputs + p.rows;
  bool uses_noise = false, uses_gate = false;
  for (int i = 0; i < p.rows; ++i) {
    uses_noise |= coefficients.c[i][noise] != T(0) || coefficients.gate_c[i][noise] != T(0);
    for (int column = 0; column <= noise; ++column) uses_gate |= coefficients.gate_c[i][column] != T(0);
  }
  const NoiseKey key = uses_noise ? noise_key(p, step, sample) : NoiseKey{0, 0};

  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; element < p.numel;
       element += stride) {
    const Place<Index> place{p, sample, static_cast<Index>(element)};
    const T g = uses_gate ? place.template gate<T>() : T(0);
    const T z = uses_noise ? static_cast<T>(place.normal(key)) : T(0);
    T y[kMaxRows];
#pragma unroll 1
    for (int i = 0; i < p.rows; ++i) {
      T sum = empty_sum<T>();
      bool empty = true;
#pragma unroll 1
      for (int column = 0; column <= noise; ++column) {
        const T c = coefficients.c[i][column], gate_c = coefficients.gate_c[i][column];
        const bool later_row = column >= p.inputs + i && column < noise;
        if (later_row || (c == T(0) && gate_c == T(0))) continue;
        empty = false;
        const int map = p.map.data && column < p.inputs ? p.map_index[i * p.inputs + column] : -1;
        T effective = gate_c == T(0) ? c : gated(c, gate_c, g);
        if (map >= 0)
          effective =
              mul(effective, place.template load<T>(p.map, step * p.map_step_stride + map * p.map_stride));
        if (effective == T(0)) continue;  // not read
        const T x = column < p.inputs ? place.template load<T>(p.input[column])
                    : column < noise  ? y[column - p.inputs]
                                      : z;
        sum = add_term(sum, effective, x);
      }
      y[i] = clamp(empty ? T(0) : sum, coefficients.c[i][noise + 1], coefficients.c[i][noise + 2]);
    }
#pragma unroll 1
    for (int i = 0; i < p.rows; ++i)
      if (p.output[i].data) store_as<T>(p.output[i].data, p.output[i].dtype, place.offset(p.output[i]), y[i]);
  }
}

// ---- launches -------------------------------------------------------------------------------------

// kernel(params, first_sample) over all samples; `turns`: what one sample's threads have to do, one each.
template <class KernelParams>
void launch_samples(void (*kernel)(KernelParams, int64_t), const KernelParams& params, int64_t samples,
                    int64_t turns, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(
      std::min((turns + kThreads - 1) / kThreads, kBlocksPerProcessor * multiprocessors("linear_step")));
  for (int64_t first = 0; first < samples; first += kMaxSamplesPerGrid) {
    const auto rows = static_cast<unsigned>(std::min(samples - first, kMaxSamplesPerGrid));
    launch(kernel, dim3(blocks, rows), dim3(kThreads), 0, stream, params, first);
  }
}

void launch_quads(const Params& p, cudaStream_t stream) {
  QuadParams q{p, {}, {}};
  for (int k = 0; k < p.inputs; ++k) q.input[k] = stream_of(p.input[k]);
  for (int i = 0; i < p.rows; ++i) q.output[i] = stream_of(p.output[i]);
  const auto kernel =
      p.inputs <= kQuadInputs / 2 ? &linear_step_quads<kQuadInputs / 2> : &linear_step_quads<kQuadInputs>;
  launch_samples(kernel, q, p.samples, p.numel / kQuad, stream);
}

static_assert(sizeof(Params) + sizeof(int64_t) <= 4096, "what every driver takes as kernel arguments");

template <class T>
void launch_elements(const Params& p, cudaStream_t stream) {
  const bool short_index = p.numel <= INT32_MAX;
  const auto kernel = short_index ? &linear_step_elements<T, uint32_t> : &linear_step_elements<T, uint64_t>;
  launch_samples(kernel, p, p.samples, p.numel, stream);
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (fits_quads(params)) {
    launch_quads(params, on);
  } else if (params.compute_double) {
    launch_elements<double>(params, on);
  } else {
    launch_elements<float>(params, on);
  }
}

}  // namespace fastdiff::linear_step

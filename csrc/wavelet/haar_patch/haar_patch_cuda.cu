// SPDX-License-Identifier: Apache-2.0
// haar_patch on CUDA: p threads to a patch, each with p x p of its numbers in registers.
//
// Towards the pixels a thread has one frame of the patch; towards the bands one high-pass number of w, for
// all frames. Between them one row of each frame at a time goes through shared memory. Neighbouring threads
// have neighbouring patches: what a warp reads of a row of pixels, and of a band, is one run of memory.
#include "core/walk.cuh"
#include "wavelet/haar_patch/haar_patch_math.h"

namespace fastdiff::haar_patch {
namespace {

constexpr int kThreads = 256;

// Where a patch is.
struct Place {
  int64_t video, bands;  // the first element of its place in a frame 1 - p, and of its first band
  bool is_first;         // in time
};

template <class Index, int kPatch>
__device__ Place place_of(const Params& p, Index patch) {
  const auto next = [&patch](int64_t size) {
    const Index at = patch % static_cast<Index>(size);
    patch /= static_cast<Index>(size);
    return static_cast<int64_t>(at);
  };
  const int64_t column = next(p.columns), row = next(p.rows), frame = next(p.frames);
  const int64_t channel = next(p.channels), sample = static_cast<int64_t>(patch);
  return {sample * p.video.batch + channel * p.video.channel +
              (frame * kPatch - (kPatch - 1)) * p.video.frame + row * kPatch * p.video.row +
              column * kPatch * p.video.column,
          sample * p.bands.batch + channel * p.bands.channel + frame * p.bands.frame + row * p.bands.row +
              column * p.bands.column,
          frame == 0};
}

template <class T, int kPatch>
__device__ __forceinline__ void load_pixels(const Params& p, int64_t at, T* v) {
  if constexpr (kPatch % kQuad == 0 && sizeof(T) == sizeof(float)) {
    if (p.quads) {
#pragma unroll
      for (int q = 0; q < kPatch; q += kQuad)
        load_quad(p.video.data, p.dtype, at + q, *reinterpret_cast<float (*)[kQuad]>(v + q));
      return;
    }
  }
#pragma unroll
  for (int w = 0; w < kPatch; ++w) v[w] = load_as<T>(p.video.data, p.dtype, at + w * p.video.column);
}

template <class T, int kPatch>
__device__ __forceinline__ void store_pixels(const Params& p, int64_t at, const T* v) {
  if constexpr (kPatch % kQuad == 0 && sizeof(T) == sizeof(float)) {
    if (p.quads) {
#pragma unroll
      for (int q = 0; q < kPatch; q += kQuad)
        store_quad(p.video.data, p.dtype, at + q, *reinterpret_cast<const float (*)[kQuad]>(v + q));
      return;
    }
  }
#pragma unroll
  for (int w = 0; w < kPatch; ++w) store_as<T>(p.video.data, p.dtype, at + w * p.video.column, v[w]);
}

__device__ __forceinline__ int64_t band_offset(const Params& p, int64_t bands, int band) {
  return bands + band * p.channels * p.bands.channel;
}

template <class T, class Index, int kPatch>
__global__ void __launch_bounds__(kThreads) to_bands(const Params p, int64_t patches) {
  constexpr int kPatches = kThreads / kPatch;
  __shared__ T exchange[kPatch][kPatch][kPatches];  // [t][w] of one row
  const int lane = static_cast<int>(threadIdx.x) % kPatches, own = static_cast<int>(threadIdx.x) / kPatches;
  const int64_t patch = static_cast<int64_t>(blockIdx.x) * kPatches + lane;
  const bool works = patch < patches;
  const Place place = place_of<Index, kPatch>(p, static_cast<Index>(works ? patch : 0));

  T v[kPatch * kPatch] = {};  // [h][w] of frame `own`
  const bool repeats = place.is_first && own < kPatch - 1;
  if (works && (!repeats || p.whole_first)) {
    const T scale = static_cast<T>(p.scale);
    const int64_t frame = place.video + (repeats ? kPatch - 1 : own) * p.video.frame;
#pragma unroll
    for (int h = 0; h < kPatch; ++h) {
      load_pixels<T, kPatch>(p, frame + h * p.video.row, v + h * kPatch);
    }
#pragma unroll
    for (int n = 0; n < kPatch * kPatch; ++n) v[n] = mul(scale, v[n]);
  }
#pragma unroll
  for (int h = 0; h < kPatch; ++h) transform<kPatch, 1>(v + h * kPatch);
#pragma unroll
  for (int w = 0; w < kPatch; ++w) transform<kPatch, kPatch>(v + w);

#pragma unroll
  for (int h = 0; h < kPatch; ++h) {
    if (h > 0) __syncthreads();  // the row before has been read
#pragma unroll
    for (int w = 0; w < kPatch; ++w) exchange[own][w][lane] = v[h * kPatch + w];
    __syncthreads();
    T band[kPatch];
#pragma unroll
    for (int t = 0; t < kPatch; ++t) band[t] = exchange[t][own][lane];
    transform<kPatch, 1>(band);
    if (!works) continue;
#pragma unroll
    for (int t = 0; t < kPatch; ++t)
      store_as<T>(p.bands.data, p.dtype, band_offset(p, place.bands, band_of<kPatch>(t, h, own)), band[t]);
  }
}

template <class T, class Index, int kPatch>
__global__ void __launch_bounds__(kThreads) to_pixels(const Params p, int64_t patches) {
  constexpr int kPatches = kThreads / kPatch;
  __shared__ T exchange[kPatch][kPatch][kPatches];  // [t][w] of one row
  const int lane = static_cast<int>(threadIdx.x) % kPatches, own = static_cast<int>(threadIdx.x) / kPatches;
  const int64_t patch = static_cast<int64_t>(blockIdx.x) * kPatches + lane;
  const bool works = patch < patches;
  const Place place = place_of<Index, kPatch>(p, static_cast<Index>(works ? patch : 0));

  T v[kPatch * kPatch];  // [h][w] of frame `own`
#pragma unroll
  for (int h = 0; h < kPatch; ++h) {
    T band[kPatch] = {};
    if (works) {
      const T scale = static_cast<T>(p.scale);
#pragma unroll
      for (int t = 0; t < kPatch; ++t)
        band[t] = mul(scale, load_as<T>(p.bands.data, p.dtype,
                                        band_offset(p, place.bands, band_of<kPatch>(t, h, own))));
    }
    transform<kPatch, 1>(band);
    if (place.is_first && p.whole_first) {
      T sum = band[0];
#pragma unroll
      for (int t = 1; t < kPatch; ++t) sum = add(sum, band[t]);
      band[kPatch - 1] = sum;
    }
    if (h > 0) __syncthreads();  // the row before has been read
#pragma unroll
    for (int t = 0; t < kPatch; ++t) exchange[t][own][lane] = band[t];
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kPatch; ++w) v[h * kPatch + w] = exchange[own][w][lane];
  }
#pragma unroll
  for (int w = 0; w < kPatch; ++w) transform<kPatch, kPatch>(v + w);
#pragma unroll
  for (int h = 0; h < kPatch; ++h) transform<kPatch, 1>(v + h * kPatch);
  if (!works || (place.is_first && own < kPatch - 1)) return;
#pragma unroll
  for (int h = 0; h < kPatch; ++h)
    store_pixels<T, kPatch>(p, place.video + own * p.video.frame + h * p.video.row, v + h * kPatch);
}

template <class T, class Index>
void launch_as(const Params& p, int64_t patches, cudaStream_t stream) {
  with_patch(p.patch, [&]<int kPatch>() {
    const unsigned blocks = blocks_for(patches, kThreads / kPatch);
    const auto kernel = p.to_bands ? &to_bands<T, Index, kPatch> : &to_pixels<T, Index, kPatch>;
    launch(kernel, dim3(blocks), dim3(kThreads), 0, stream, p, patches);
  });
}

template <class T>
void launch_indexed(const Params& p, cudaStream_t stream) {
  const int64_t patches = p.lines() * p.columns;
  if (patches <= kMaxInt32) {
    launch_as<T, uint32_t>(p, patches, stream);
  } else {
    launch_as<T, int64_t>(p, patches, stream);
  }
}

}  // namespace

void launch_cuda(const Params& params, int device, void* stream) {
  const OnDevice on_device(device);
  const auto on = static_cast<cudaStream_t>(stream);
  if (params.dtype == DType::f64) {
    launch_indexed<double>(params, on);
  } else {
    launch_indexed<float>(params, on);
  }
}

}  // namespace fastdiff::haar_patch

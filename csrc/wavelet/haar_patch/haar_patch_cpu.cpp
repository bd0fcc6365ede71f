// SPDX-License-Identifier: Apache-2.0
// haar_patch on the CPU, compiled once per ISA.
//
// A tile of neighbouring patches of one line goes through the first-level cache. On its way in or out each
// row of pixels is one run of memory, cut into registers of one column of the patches each; each band is one
// run too, and they are written one after the other: side by side, bands whose planes are a multiple of 4 KiB
// apart would push each other out of the cache.
#include <algorithm>
#include <type_traits>

#include "core/runs.h"
#include "wavelet/haar_patch/haar_patch_math.h"

namespace fastdiff::haar_patch {
namespace {

constexpr uintptr_t kCacheLine = 64;

// kCount registers of consecutive elements, v[k] the k-th, become v[a]: all elements whose place is a
// (mod kCount).
template <int kCount, class V>
[[gnu::always_inline]] inline void split(V* v) {
  if constexpr (kCount > 1) {
    V even[kCount / 2], odd[kCount / 2];
    for (int k = 0; k < kCount / 2; ++k) deinterleave(v[2 * k], v[2 * k + 1], even[k], odd[k]);
    split<kCount / 2>(even);
    split<kCount / 2>(odd);
    for (int a = 0; a < kCount / 2; ++a) {
      v[2 * a] = even[a];
      v[2 * a + 1] = odd[a];
    }
  }
}

// The way back.
template <int kCount, class V>
[[gnu::always_inline]] inline void join(V* v) {
  if constexpr (kCount > 1) {
    V even[kCount / 2], odd[kCount / 2];
    for (int a = 0; a < kCount / 2; ++a) {
      even[a] = v[2 * a];
      odd[a] = v[2 * a + 1];
    }
    join<kCount / 2>(even);
    join<kCount / 2>(odd);
    for (int k = 0; k < kCount / 2; ++k) interleave(even[k], odd[k], v[2 * k], v[2 * k + 1]);
  }
}

// T: of the arithmetic. S: of the elements in memory.
template <class T, class S, int kPatch>
class Transform {
  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int kColumns = kPatch == 8 ? 32 : kPatch == 4 ? 64 : 256;  // patches of a tile
  static_assert(kColumns % L::width == 0);
  // As a constant, so that no loop over strided elements asks for it.
  static constexpr DType kDType = std::is_same_v<S, double>   ? DType::f64
                                  : std::is_same_v<S, half_t> ? DType::f16
                                  : std::is_same_v<S, float>  ? DType::f32
                                                              : DType::bf16;

 public:
  explicit Transform(const Params& p) : p_(p), scale_(splat<V>(static_cast<T>(p.scale))) {}

  void line(int64_t number) {
    // Of channels that lie side by side, a line each before the next line: they share their cache lines.
    const int64_t inside = p_.bands.channel == 1 ? p_.channels : 1;
    const int64_t outside = p_.channels / inside;
    const int64_t row = number / inside % p_.rows;
    const int64_t frame = number / inside / p_.rows % p_.frames;
    channel_ = number % inside + number / inside / p_.rows / p_.frames % outside;
    const int64_t sample = number / inside / p_.rows / p_.frames / outside;
    is_first_ = frame == 0;
    is_last_ = row + 1 == p_.rows;
    // The pixels of the first frame of patches: the video has the last of them only.
    video_ = sample * p_.video.batch + channel_ * p_.video.channel +
             (frame * kPatch - (kPatch - 1)) * p_.video.frame + row * kPatch * p_.video.row;
    bands_ = sample * p_.bands.batch + frame * p_.bands.frame + row * p_.bands.row;
    for (int64_t first = 0; first < p_.columns; first += kColumns) {
      count_ = static_cast<int>(std::min<int64_t>(kColumns, p_.columns - first));
      if (p_.to_bands) {
        each_row([&](int t, int h) { read_pixels(t, h, first); });
        transform_columns();
        each_band([&](T* tile, int64_t channel) { write_band(tile, channel, first); });
      } else {
        each_band([&](T* tile, int64_t channel) { read_band(tile, channel, first); });
        transform_columns();
        each_row([&](int t, int h) { write_pixels(t, h, first); });
      }
    }
  }

 private:
  template <class Body>
  static void each_row(const Body& body) {
    for (int t = 0; t < kPatch; ++t)
      for (int h = 0; h < kPatch; ++h) body(t, h);
  }

  template <class Body>
  void each_band(const Body& body) {
    for (int t = 0; t < kPatch; ++t)
      for (int h = 0; h < kPatch; ++h)
        for (int w = 0; w < kPatch; ++w)
          body(tile_[t][h][w], band_of<kPatch>(t, h, w) * p_.channels + channel_);
  }

  // Asks for what the next line reads while this one is at work: there are too many short runs for the
  // hardware to see them coming. Measured at p = 4: 1.2 to 2.5 times as fast.
  static void ask_for(const Side& side, int64_t at, int count) {
    const S* const x = static_cast<const S*>(side.data) + at;
    for (int e = 0; e < count; e += static_cast<int>(kCacheLine / sizeof(S))) __builtin_prefetch(x + e, 0, 2);
  }

  // Whether a run goes past the caches: whole lines only, the others would be written in pieces.
  bool streams(const S* y, int count) const {
    return p_.stream && (reinterpret_cast<uintptr_t>(y) | (count * sizeof(S))) % kCacheLine == 0;
  }

  // ---- pixels

  int64_t row_offset(int t, int h, int64_t first) const {
    return video_ + t * p_.video.frame + h * p_.video.row + first * kPatch * p_.video.column;
  }

  void read_pixels(int t, int h, int64_t first) {
    int frame = t;
    if (is_first_ && t < kPatch - 1) {
      if (!p_.whole_first) {
        for (auto& tile : tile_[t][h]) std::fill_n(tile, kColumns, T(0));
        return;
      }
      frame = kPatch - 1;
    }
    const int64_t at = row_offset(frame, h, first);
    const int whole = p_.video.column == 1 ? count_ / L::width * L::width : 0;
    if (p_.video.column == 1 && !is_last_) ask_for(p_.video, at + kPatch * p_.video.row, count_ * kPatch);
    split_row(static_cast<const S*>(p_.video.data) + at, tile_[t][h], 0, whole);
    if (whole == count_) return;
    const int rest = (count_ - whole) * kPatch;
    load_run(p_.video.data, kDType, at + whole * kPatch * p_.video.column, p_.video.column, rest, row_);
    std::fill(row_ + rest, row_ + padded(count_ - whole) * kPatch, T(0));
    split_row(row_, tile_[t][h], whole, padded(count_));
  }

  // Patches [begin, end) of the tile from a row of pixels that begins with the first of them.
  template <class E>
  void split_row(const E* x, T (*tile)[kColumns], int begin, int end) const {
    const V scale = scale_;
    for (int c = begin; c < end; c += L::width, x += kPatch * L::width) {
      V v[kPatch];
      for (int k = 0; k < kPatch; ++k) v[k] = mul(scale, L::load(x + k * L::width));
      split<kPatch>(v);
      transform<kPatch, 1>(v);
      for (int w = 0; w < kPatch; ++w) L::store(tile[w] + c, v[w]);
    }
  }

  void write_pixels(int t, int h, int64_t first) {
    if (is_first_ && t < kPatch - 1) return;
    const int64_t at = row_offset(t, h, first);
    S* const y = static_cast<S*>(p_.video.data) + at;
    const int whole = p_.video.column == 1 ? count_ / L::width * L::width : 0;
    if (streams(y, whole * kPatch)) {
      join_row(tile_[t][h], 0, whole, y, [](S* to, V v) { L::stream(to, v); });
    } else {
      join_row(tile_[t][h], 0, whole, y, [](S* to, V v) { L::store(to, v); });
    }
    if (whole == count_) return;
    join_row(tile_[t][h], whole, padded(count_), row_, [](T* to, V v) { L::store(to, v); });
    const int64_t rest = at + whole * kPatch * p_.video.column;
    for (int e = 0; e < (count_ - whole) * kPatch; ++e)
      store_as<T>(p_.video.data, kDType, rest + e * p_.video.column, row_[e]);
  }

  template <class E, class Put>
  static void join_row(const T (*tile)[kColumns], int begin, int end, E* y, const Put& put) {
    for (int c = begin; c < end; c += L::width, y += kPatch * L::width) {
      V v[kPatch];
      for (int w = 0; w < kPatch; ++w) v[w] = L::load(tile[w] + c);
      transform<kPatch, 1>(v);
      join<kPatch>(v);
      for (int k = 0; k < kPatch; ++k) put(y + k * L::width, v[k]);
    }
  }

  // ---- bands

  int64_t band_offset(int64_t channel, int64_t first) const {
    return bands_ + channel * p_.bands.channel + first * p_.bands.column;
  }

  void read_band(T* tile, int64_t channel, int64_t first) {
    const int64_t at = band_offset(channel, first);
    int c = 0;
    if (p_.bands.column == 1) {
      if (!is_last_) ask_for(p_.bands, at + p_.bands.row, count_);
      const S* const x = static_cast<const S*>(p_.bands.data) + at;
      for (; c + L::width <= count_; c += L::width) L::store(tile + c, mul(scale_, L::load(x + c)));
    }
    const T scale = static_cast<T>(p_.scale);
    for (; c < count_; ++c) tile[c] = mul(scale, load_as<T>(p_.bands.data, kDType, at + c * p_.bands.column));
    std::fill(tile + c, tile + padded(c), T(0));
  }

  void write_band(const T* tile, int64_t channel, int64_t first) {
    const int64_t at = band_offset(channel, first);
    int c = 0;
    if (p_.bands.column == 1) {
      S* const y = static_cast<S*>(p_.bands.data) + at;
      if (streams(y, count_)) {
        for (; c + L::width <= count_; c += L::width) L::stream(y + c, L::load(tile + c));
      } else {
        for (; c + L::width <= count_; c += L::width) L::store(y + c, L::load(tile + c));
      }
    }
    for (; c < count_; ++c) store_as<T>(p_.bands.data, kDType, at + c * p_.bands.column, tile[c]);
  }

  // ---- the axes t and h of the tile

  void transform_columns() {
    for (int w = 0; w < kPatch; ++w)
      for (int c = 0; c < count_; c += L::width) transform_column(&tile_[0][0][w][c]);
  }

  void transform_column(T* tile) const {
    V v[kPatch * kPatch];
    for (int n = 0; n < kPatch * kPatch; ++n) v[n] = L::load(tile + n * kPatch * kColumns);
    if (p_.to_bands) {
      transform_h(v);
      transform_t(v);
    } else {
      transform_t(v);
      if (is_first_ && p_.whole_first)
        for (int h = 0; h < kPatch; ++h) add_frames(v + h);
      transform_h(v);
    }
    for (int n = 0; n < kPatch * kPatch; ++n) L::store(tile + n * kPatch * kColumns, v[n]);
  }

  [[gnu::always_inline]] static void transform_h(V* v) {
    for (int t = 0; t < kPatch; ++t) transform<kPatch, 1>(v + t * kPatch);
  }
  [[gnu::always_inline]] static void transform_t(V* v) {
    for (int h = 0; h < kPatch; ++h) transform<kPatch, kPatch>(v + h);
  }
  static void add_frames(V* v) {
    V sum = v[0];
    for (int t = 1; t < kPatch; ++t) sum = add(sum, v[t * kPatch]);
    v[(kPatch - 1) * kPatch] = sum;
  }

  static constexpr int padded(int count) { return (count + L::width - 1) / L::width * L::width; }

  const Params& p_;
  const V scale_;
  int64_t channel_ = 0, video_ = 0, bands_ = 0;           // of the line: its channel, its first elements
  bool is_first_ = false;                                 // of the frames of patches
  bool is_last_ = false;                                  // of the rows of a frame
  int count_ = 0;                                         // patches in the tile
  alignas(64) T tile_[kPatch][kPatch][kPatch][kColumns];  // [t][h][w], each a pixel or a band
  alignas(64) T row_[kPatch * kColumns];                  // of pixels
};

template <class T, class S, int kPatch>
void run_lines(const Params& p, int64_t begin, int64_t end) {
  Transform<T, S, kPatch> own(p);
  for (int64_t line = begin; line < end; ++line) own.line(line);
  if (p.stream) stream_fence();
}

template <class T>
void run_as(const Params& p, int64_t begin, int64_t end) {
  with_storage<T>(p.dtype, [&]<class S>(S) {
    with_patch(p.patch, [&]<int kPatch>() { run_lines<T, S, kPatch>(p, begin, end); });
  });
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, int64_t begin, int64_t end) {
  if (params.dtype == DType::f64) {
    run_as<double>(params, begin, end);
  } else {
    run_as<float>(params, begin, end);
  }
}

}  // namespace fastdiff::haar_patch

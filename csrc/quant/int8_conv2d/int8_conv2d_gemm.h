// SPDX-License-Identifier: Apache-2.0
// int8_conv2d on the CPU: what all instruction sets have in common. First the range of each sample, then its
// bytes with channels last and padding around them, then blocks of rows of the product.
#pragma once

#include <limits>

#include "quant/int8_conv2d/int8_conv2d_math.h"
#include "quant/int8_rows_cpu.h"
#include "quant/int8_sums_cpu.h"

namespace fastdiff::int8_conv2d {
namespace {

using namespace quant;

constexpr int64_t kChunk = 2048;  // elements that are converted together

// Elements of x where they lie, if they are float32 side by side; else a copy.
inline const float* floats_of(const Params& p, int64_t at, int64_t stride, int64_t count, float* copy) {
  if (p.dtype == DType::f32 && stride == 1) return static_cast<const float*>(p.x) + at;
  load_run(p.x, p.dtype, at, stride, count, copy);
  return copy;
}

// ---- ranges -----------------------------------------------------------------------------------------

// Of part `part` of sample b, and of 0.
inline void find_range(const Params& p, int64_t b, int64_t part, int64_t parts) {
  alignas(64) float buffer[kChunk];
  const int64_t elements = p.image.channels * p.image.size[0] * p.image.size[1];
  const int64_t end = elements * (part + 1) / parts, base = b * p.walk.sample_stride;
  const int dims = static_cast<int>(p.walk.dims);
  float least = 0.0f, greatest = 0.0f;
  for (int64_t e = elements * part / parts; e < end; e += kChunk) {
    const int count = static_cast<int>(std::min(kChunk, end - e));
    for_each_run(dims, p.walk.size, p.walk.stride, e, count, [&](int64_t at, int, int run) {
      widen_range(floats_of(p, base + at, p.walk.stride[0], run, buffer), run, least, greatest);
    });
  }
  float* const range = p.ranges + (b * parts + part) * 2;
  range[0] = least, range[1] = greatest;
}

inline void set_scale(const Params& p, int64_t b, int64_t parts) {
  float least = 0.0f, greatest = 0.0f;
  for (int64_t part = 0; p.finds_range() && part < parts; ++part) {
    least = std::min(least, p.ranges[(b * parts + part) * 2]);
    greatest = std::max(greatest, p.ranges[(b * parts + part) * 2 + 1]);
  }
  p.scales[b] = scale_of(p, b, least, greatest);
}

// ---- bytes ------------------------------------------------------------------------------------------

// Rows become columns. For bytes in words whose lowest comes first in memory.
inline void transpose_bytes(uint64_t (&x)[8]) {
  const auto exchange = [&x](int step, uint64_t mask) {
    for (int i = 0; i < 8; ++i) {
      if ((i & step) != 0) continue;
      const uint64_t differ = (x[i] >> (8 * step) ^ x[i + step]) & mask;
      x[i + step] ^= differ;
      x[i] ^= differ << (8 * step);
    }
  };
  exchange(4, 0x00000000ffffffffu);
  exchange(2, 0x0000ffff0000ffffu);
  exchange(1, 0x00ff00ff00ff00ffu);
}

template <int kOffset>
class PixelWriter {
 public:
  PixelWriter(const Params& p, int64_t b) : p_(p), scale_(p.scales[b]), b_(b) {}

  // A row of the padded image.
  void operator()(int64_t row) {
    const Image& image = p_.image;
    uint8_t* const to = p_.bytes + (b_ * image.padded[0] + row) * image.row();
    const auto zero = static_cast<uint8_t>(padding_of(scale_) + kOffset);
    const int64_t line = row - image.padding[0], around = image.padding[1] * image.channels;
    if (line < 0 || line >= image.size[0]) {
      std::fill_n(to, image.row(), zero);
      return;
    }
    std::fill_n(to, around, zero);
    std::fill_n(to + image.row() - around, around, zero);
    const int64_t at = b_ * p_.strides[0] + line * p_.strides[2];
    if (p_.strides[1] == 1 || image.channels == 1) {
      pixels(at, to + around);
    } else {
      planes(at, to + around);
    }
    p_.broken[b_ * image.size[0] + line] = broken_;
  }

 private:
  static constexpr int64_t kLanes = 8, kColumns = kChunk / kLanes;

  // Channels lie side by side.
  void pixels(int64_t at, uint8_t* to) {
    const int64_t width = p_.image.size[1], c = p_.image.channels, step = p_.strides[3];
    if (step == c || c == 1) {
      for (int64_t n = 0; n < width * c; n += kChunk)
        copy(at + n * (c == 1 ? step : 1), c == 1 ? step : 1, std::min(kChunk, width * c - n), to + n);
      return;
    }
    for (int64_t w = 0; w < width; ++w)
      for (int64_t n = 0; n < c; n += kChunk)
        copy(at + w * step + n, 1, std::min(kChunk, c - n), to + w * c + n);
  }

  void copy(int64_t at, int64_t stride, int64_t count, uint8_t* to) {
    convert(at, stride, count, bytes_);
    std::memcpy(to, bytes_, static_cast<size_t>(count));
  }

  // Columns do: eight channels at a time become the bytes of pixels.
  void planes(int64_t at, uint8_t* to) {
    const int64_t width = p_.image.size[1], c = p_.image.channels;
    for (int64_t w = 0; w < width; w += kColumns)
      for (int64_t n = 0; n < c; n += kLanes) {
        const int64_t columns = std::min(kColumns, width - w), lanes = std::min(kLanes, c - n);
        for (int64_t l = 0; l < lanes; ++l)
          convert(at + (n + l) * p_.strides[1] + w * p_.strides[3], p_.strides[3], columns,
                  bytes_ + l * kColumns);
        for (int64_t j = 0; j < columns; j += kLanes) {
          uint64_t words[kLanes];
          for (int64_t l = 0; l < kLanes; ++l) std::memcpy(&words[l], bytes_ + l * kColumns + j, kLanes);
          transpose_bytes(words);
          for (int64_t i = 0; i < std::min(kLanes, columns - j); ++i)
            std::memcpy(to + (w + j + i) * c + n, &words[i], static_cast<size_t>(lanes));
        }
      }
  }

  // Up to kChunk elements; whole pieces of `to` are written.
  void convert(int64_t at, int64_t stride, int64_t count, uint8_t* to) {
    if (p_.is_int8) {
      const int8_t* const x = static_cast<const int8_t*>(p_.x) + at;
      for (int64_t k = 0; k < count; ++k) to[k] = static_cast<uint8_t>(x[k * stride] + kOffset);
      return;
    }
    RowScale s = scale_;
    write_bytes(floats_of(p_, at, stride, count, floats_), count, s, kOffset, to, kPiece);
    broken_ |= s.scale != s.scale;
  }

  const Params& p_;
  const RowScale scale_;
  const int64_t b_;
  int32_t broken_ = 0;
  alignas(64) float floats_[kChunk];
  alignas(64) uint8_t bytes_[kChunk] = {};
};

// ---- rows of the product ----------------------------------------------------------------------------

inline void set_scales(const Params& p, int64_t first, int64_t count) {
  const int64_t pixels = p.image.out[0] * p.image.out[1];
  for (int64_t m = first; m < first + count; ++m) {
    const RowScale& s = p.scales[m / pixels];
    p.row_scale[m] = s.scale;
    p.row_zero[m] = s.zero_point;
  }
}

// Where the runs of a row begin, from its first pixel on.
inline void find_starts(const Params& p) {
  const Image& image = p.image;
  for (int64_t n = 0; n < image.kernel[0] * image.runs(); ++n)
    p.starts[n] = n / image.runs() * image.dilation[0] * image.row() +
                  n % image.runs() * image.dilation[1] * image.channels;
}

template <int kOffset, bool kSigned>
class PatchWriter {
 public:
  explicit PatchWriter(const Params& p) : p_(p) {}

  // Rows [first, first + count) into groups at q.
  void operator()(int64_t first, int64_t count, uint8_t* q) const {
    const Image& image = p_.image;
    for (int64_t r = 0; r < count; ++r) {
      uint8_t* const to = q + (r / kGroupRows * p_.pieces * kGroupRows + r % kGroupRows) * kPiece;
      gather(p_.bytes + image.at(first + r), to);
      if (p_.zero_point != nullptr) p_.row_sum[first + r] = sum_of(to);
    }
  }

 private:
  static constexpr int64_t kStep = kGroupRows * kPiece;

  void gather(const uint8_t* from, uint8_t* to) const {
    const Image& image = p_.image;
    int64_t k = 0;
    const auto append = [&](const uint8_t* bytes, int64_t count) {
      while (count > 0) {
        const int64_t room = kPiece - k % kPiece, now = std::min(room, count);
        uint8_t* const at = to + k / kPiece * kStep + k % kPiece;
        if (now == kPiece) {
          std::memcpy(at, bytes, kPiece);  // of a size that the compiler knows
        } else {
          std::memcpy(at, bytes, static_cast<size_t>(now));
        }
        k += now, bytes += now, count -= now;
      }
    };
    for (int64_t n = 0; n < image.kernel[0] * image.runs(); ++n) append(from + p_.starts[n], image.run());
    if (const int64_t rest = k % kPiece; rest != 0)
      std::fill_n(to + k / kPiece * kStep + rest, kPiece - rest, uint8_t{0});
  }

  // sum_k q; what fills up the last piece is 0.
  int32_t sum_of(const uint8_t* row) const {
    int32_t sum = 0;
    for (int64_t piece = 0; piece < p_.pieces; ++piece)
      for (int64_t k = 0; k < kPiece; ++k) {
        const uint8_t byte = row[piece * kStep + k];
        sum += kSigned && kOffset == 0 ? static_cast<int8_t>(byte) : byte;
      }
    return sum - static_cast<int32_t>(p_.epilogue.inner) * kOffset;
  }

  const Params& p_;
};

template <class Tiles, bool kSigned>
void run_as(const Params& p, const Team& team) {
  constexpr int kOffset = Tiles::template kOffset<kSigned>;
  const Epilogue& e = p.epilogue;
  const Image& image = p.image;
  const int64_t parts = parts_of_range(p);
  if (p.finds_range())
    each_part(team, image.batch * parts, [&](int64_t n) { find_range(p, n / parts, n % parts, parts); });
  widen_vectors(e, 0, 1);
  find_starts(p);
  for (int64_t b = 0; b < image.batch; ++b) set_scale(p, b, parts);

  each_part(team, image.batch * image.padded[0],
            [&](int64_t n) { PixelWriter<kOffset>(p, n / image.padded[0])(n % image.padded[0]); });
  for (int64_t n = 0; n < image.batch * image.size[0]; ++n)
    if (p.broken[n] != 0) p.scales[n / image.size[0]].scale = std::numeric_limits<float>::quiet_NaN();

  const Shares shares = shares_of(p, team);
  const int64_t units = (e.rows + 31) / 32, pairs = (e.slots / kPanel + kPair - 1) / kPair;
  const Int8Factors factors{p.weight,    p.column_sum, p.zero_point, p.pieces,
                            p.row_scale, p.row_zero,   p.row_sum};
  each_part(team, shares.rows * shares.runs, [&](int64_t part) {
    const int64_t share = part / shares.runs, run = part % shares.runs;
    const int64_t end = std::min(e.rows, units * (share + 1) / shares.rows * 32);
    const int64_t first_panel = pairs * run / shares.runs * kPair;
    const int64_t last_panel = std::min(e.slots / kPanel, pairs * (run + 1) / shares.runs * kPair);
    uint8_t* const q = p.rows + part * shares.block * p.pieces * kPiece;
    const PatchWriter<kOffset, kSigned> write_patches(p);
    Tiles::begin();
    Int8Sums<Tiles, kSigned> sums(e, factors);
    for (int64_t m = units * share / shares.rows * 32; m < end; m += shares.block) {
      const int64_t count = std::min(shares.block, end - m);
      set_scales(p, m, count);
      if constexpr (Tiles::kReadsInPlace) {
        if (p.in_place()) {
          sums([&p, m](int64_t r) { return p.bytes + p.image.at(m + r); }, m, count, first_panel, last_panel,
               {image.stride[1] * image.channels, kPiece, p.starts, image.run() / kPiece});
          continue;
        }
      }
      write_patches(m, count, q);
      sums(StoredGroups{q, p.pieces}, m, count, first_panel, last_panel);
    }
    Tiles::end();
  });
}

template <class Tiles>
void run_with(const Params& p, const Team& team) {
  if (p.is_signed) {
    run_as<Tiles, true>(p, team);
  } else {
    run_as<Tiles, false>(p, team);
  }
}

}  // namespace
}  // namespace fastdiff::int8_conv2d

// SPDX-License-Identifier: Apache-2.0
// laplacian_split on the CPU, compiled once per ISA.
//
// A strip of columns goes down the image. Six of its rows are mixed in registers, taken apart into even and
// odd columns, and mixed along the row to a coarse row. As soon as five of these are there, expanded along
// the row, the two fine rows in their middle are mixed from them and become detail. All but the image itself
// stays in the first-level cache.
#include "wavelet/laplacian_split/laplacian_split_math.h"
#include "wavelet/pyramid_cpu.h"

namespace fastdiff::laplacian_split {
namespace {

using namespace pyramid;

// The coarse rows that the fine rows of a strip give.
template <class T>
class Reduction {
  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int kPair = 2 * L::width;

 public:
  explicit Reduction(const Level& level) : image_(level.whole), height_(level.height) {
    std::fill_n(even_, kLine, T(0));
    std::fill_n(odd_, kLine, T(0));
  }

  // The plane that begins at `offset`.
  void begin(int64_t offset) {
    offset_ = offset;
    gathered_to_ = -1;
  }

  // Mixes the fine rows of a coarse one.
  void mix_rows(int64_t row, const Strip& strip) {
    const int64_t from = std::max<int64_t>(0, 2 * (strip.first - 1));
    const int64_t to = std::min(strip.fine, 2 * (strip.last + 1));
    int64_t source[kDownTaps];
    for (int k = 0; k < kDownTaps; ++k) source[k] = extended(2 * row - 2 + k, height_);
    const int at = strip.at(from / 2), count = static_cast<int>(to - from);
    if (image_.column == 1) {
      with_image<T>(image_, [&]<class S>(S) {
        const S* x[kDownTaps];
        for (int k = 0; k < kDownTaps; ++k)
          x[k] = static_cast<const S*>(image_.data) + offset_ + source[k] * image_.row + from;
        mix(x, count, static_cast<int>(strip.fine - from), at);
      });
    } else {
      gather(std::min(2 * row + kDownTaps - 2, height_), from, count);
      const T* x[kDownTaps];
      for (int k = 0; k < kDownTaps; ++k) x[k] = gathered_[source[k] % kRing];
      mix(x, count, 2 * kLine, at);
    }
    if (strip.first == 0) extend(-2, 0, strip);
    extend(strip.fine, 2 * (strip.last + 1), strip);
  }

  // Mixes its columns, into [strip.first, strip.last) of a line.
  void mix_columns(const Strip& strip, T* line) const {
    V weight[kDownTaps];
    for (int k = 0; k < kDownTaps; ++k) weight[k] = splat<V>(down_weight<T>(k));
    for (int t = strip.at(strip.first); t < strip.at(strip.last); t += L::width)
      L::store(line + t, sum_of_taps<kDownTaps, V>([&](int k) { return weight[k]; },
                                                   [&](int k) {
                                                     const T* const mixed = k % 2 == 0 ? even_ : odd_;
                                                     return L::load(mixed + t - 1 + k / 2);
                                                   }));
  }

 private:
  // x: the rows, of which `readable` elements may be read and `count` are needed; `at`: where in a line they
  // begin.
  template <class S>
  void mix(const S* const (&x)[kDownTaps], int count, int readable, int at) {
    V weight[kDownTaps];
    for (int k = 0; k < kDownTaps; ++k) weight[k] = splat<V>(down_weight<T>(k));
    const auto store = [&](int e, const auto& load) {
      const V a =
          sum_of_taps<kDownTaps, V>([&](int k) { return weight[k]; }, [&](int k) { return load(k, 0); });
      const V b = sum_of_taps<kDownTaps, V>([&](int k) { return weight[k]; },
                                            [&](int k) { return load(k, L::width); });
      V even, odd;
      deinterleave(a, b, even, odd);
      L::store(even_ + at + e / 2, even);
      L::store(odd_ + at + e / 2, odd);
    };
    int e = 0;
    for (; e < count && e + kPair <= readable; e += kPair)
      store(e, [&](int k, int next) { return L::load(x[k] + e + next); });
    if (e >= count) return;
    alignas(64) T rest[kDownTaps][kPair] = {};
    for (int k = 0; k < kDownTaps; ++k)
      for (int n = e; n < count; ++n) rest[k][n - e] = widened<T>(x[k][n]);
    store(e, [&](int k, int next) { return L::load(rest[k] + next); });
  }

  // Rows before `end`, from the first that has not been yet; all that are needed at a time are in the ring.
  void gather(int64_t end, int64_t from, int count) {
    if (gathered_to_ < 0) gathered_to_ = std::max<int64_t>(0, end - kRing);
    for (; gathered_to_ < end; ++gathered_to_)
      load_run(image_.data, image_.dtype, offset_ + gathered_to_ * image_.row + from * image_.column,
               image_.column, count, gathered_[gathered_to_ % kRing]);
  }

  // Columns [begin, end), beyond the image, of the mixed rows.
  void extend(int64_t begin, int64_t end, const Strip& strip) {
    for (int64_t column = begin; column < end; ++column) {
      const int64_t from = extended(column, strip.fine);
      const T value = (from % 2 == 0 ? even_ : odd_)[strip.at(from / 2)];
      (column % 2 == 0 ? even_ : odd_)[strip.at((column + 2) / 2 - 1)] = value;
    }
  }

  const Image& image_;
  const int64_t height_;
  int64_t offset_ = 0, gathered_to_ = -1;
  alignas(64) T even_[kLine];
  alignas(64) T odd_[kLine];
  alignas(64) T gathered_[kRing][2 * kLine];
};

template <class T>
class Splitter {
 public:
  explicit Splitter(const Level& level) : level_(level), reduction_(level), expansion_(level) {}

  // Coarse rows [begin, end) of a plane, and the detail of as many pairs of fine rows.
  void run(int64_t plane, int64_t begin, int64_t end) {
    const int64_t rows = coarse_size(level_.height);
    const int64_t whole = plane_offset(level_, level_.whole, plane);
    const int64_t detail = plane_offset(level_, level_.detail, plane);
    const int64_t coarse = plane_offset(level_, level_.coarse, plane);
    const int64_t first = std::max<int64_t>(0, begin - kUpReach), last = std::min(rows, end + kUpReach);
    for (int64_t number = 0; number < strips_of(level_); ++number) {
      const Strip strip(number, level_.width);
      expansion_.begin(strip);
      reduction_.begin(whole);
      // A coarse row is mixed from its columns after, and expanded a turn after its rows have been mixed:
      // what one pass has stored the next one does not load at once.
      int64_t done = begin;
      for (int64_t row = first; row <= last; ++row) {
        if (row < last) reduction_.mix_rows(row, strip);
        if (row > first) expansion_.expand(row - 1, strip);
        const int64_t ready = row == last ? end : std::min(end, row - kUpReach);
        for (; done < ready; ++done)
          for (int64_t fine = 2 * done; fine < std::min(level_.height, 2 * done + 2); ++fine)
            write_detail(fine, whole, detail, strip);
        if (row == last) break;
        T* const line = expansion_.line(row);
        reduction_.mix_columns(strip, line);
        if (row >= begin && row < end) write_coarse(line, row, coarse, strip);
      }
    }
  }

 private:
  void write_coarse(const T* line, int64_t row, int64_t offset, const Strip& strip) const {
    const Image& to = level_.coarse;
    const Image from{const_cast<T*>(line), sizeof(T) == sizeof(double) ? DType::f64 : DType::f32, 0, 1, {}};
    write_row<T>(
        from, kLead, to, offset + row * to.row + strip.begin * to.column,
        [](auto lanes, int) { return lanes; }, static_cast<int>(strip.end - strip.begin),
        [](auto own, auto) { return own; });
  }

  void write_detail(int64_t row, int64_t whole, int64_t detail_, const Strip& strip) const {
    const Image &x = level_.whole, &y = level_.detail;
    expansion_.fine_row(row, [&](const auto& expanded) {
      write_row<T>(x, whole + row * x.row + strip.fine_begin() * x.column, y,
                   detail_ + row * y.row + strip.fine_begin() * y.column, expanded, strip.fine_count(),
                   [](auto own, auto up) { return detail(own, up); });
    });
  }

  const Level& level_;
  Reduction<T> reduction_;
  Expansion<T> expansion_;
};

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& p, const Team& team) {
  share_out(p, team, true, [&p](const Level& level, int64_t plane, int64_t begin, int64_t end) {
    if (p.wide) {
      Splitter<double>(level).run(plane, begin, end);
    } else {
      Splitter<float>(level).run(plane, begin, end);
    }
  });
}

}  // namespace fastdiff::laplacian_split

// SPDX-License-Identifier: Apache-2.0
// laplacian_merge on the CPU, compiled once per ISA.
//
// A strip of columns goes down the image. Five coarse rows are kept, expanded along the row; each pair of
// fine rows is mixed from them and goes out with its detail at once.
#include "wavelet/laplacian_merge/laplacian_merge_math.h"
#include "wavelet/pyramid_cpu.h"

namespace fastdiff::laplacian_merge {
namespace {

using namespace pyramid;

template <class T>
class Merger {
 public:
  explicit Merger(const Level& level) : level_(level), expansion_(level) {}

  // The fine rows that belong to coarse rows [begin, end) of a plane.
  void run(int64_t plane, int64_t begin, int64_t end) {
    const int64_t rows = coarse_size(level_.height);
    const int64_t whole = plane_offset(level_, level_.whole, plane);
    const int64_t detail = plane_offset(level_, level_.detail, plane);
    const int64_t coarse = plane_offset(level_, level_.coarse, plane);
    for (int64_t number = 0; number < strips_of(level_); ++number) {
      const Strip strip(number, level_.width);
      expansion_.begin(strip);
      const int64_t last = std::min(rows, end + kUpReach);
      int64_t next = std::max<int64_t>(0, begin - kUpReach);
      load(next, coarse, strip);
      for (int64_t row = begin; row < end; ++row) {
        for (; next < std::min(last, row + kUpReach + 1); ++next) {
          if (next + 1 < last) load(next + 1, coarse, strip);
          expansion_.expand(next, strip);
        }
        for (int64_t fine = 2 * row; fine < std::min(level_.height, 2 * row + 2); ++fine)
          write(fine, whole, detail, strip);
      }
    }
  }

 private:
  void load(int64_t row, int64_t offset, const Strip& strip) {
    const Image& from = level_.coarse;
    load_run(from.data, from.dtype, offset + row * from.row + strip.first * from.column, from.column,
             static_cast<int>(strip.last - strip.first), expansion_.line(row) + strip.at(strip.first));
  }

  void write(int64_t row, int64_t whole_, int64_t detail, const Strip& strip) const {
    const Image &x = level_.detail, &y = level_.whole;
    expansion_.fine_row(row, [&](const auto& expanded) {
      write_row<T>(x, detail + row * x.row + strip.fine_begin() * x.column, y,
                   whole_ + row * y.row + strip.fine_begin() * y.column, expanded, strip.fine_count(),
                   [](auto own, auto up) { return whole(own, up); });
    });
  }

  const Level& level_;
  Expansion<T> expansion_;
};

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& p, const Team& team) {
  share_out(p, team, false, [&p](const Level& level, int64_t plane, int64_t begin, int64_t end) {
    if (p.wide) {
      Merger<double>(level).run(plane, begin, end);
    } else {
      Merger<float>(level).run(plane, begin, end);
    }
  });
}

}  // namespace fastdiff::laplacian_merge

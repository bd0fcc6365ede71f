// SPDX-License-Identifier: Apache-2.0
// channel_affine on the CPU, compiled once per ISA.
//
// A plane is measured and at once written, while it is in the cache. Planes of consecutive elements fill
// registers with their neighbours along the row; where the channels lie side by side (channels_last) a
// register holds that many channels of one element. Both add in the same order.
#include <algorithm>
#include <bit>

#include "core/runs.h"
#include "guidance/channel_affine/channel_affine_math.h"

namespace fastdiff::channel_affine {
namespace {

constexpr uintptr_t kCacheLine = 64;

// body(T{}) with the arithmetic type
template <class Body>
void with_arithmetic(bool wide, const Body& body) {
  if (wide) {
    body(double{});
  } else {
    body(float{});
  }
}

// One element, of a storage type or of the arithmetic type itself.
inline float value_of(half_t x) {
  return widen(x);
}
inline float value_of(bfloat16_t x) {
  return widen(x);
}
template <class T>
T value_of(T x) {
  return x;
}

inline void set(half_t& y, float value) {
  y = to_half(value);
}
inline void set(bfloat16_t& y, float value) {
  y = to_bfloat16(value);
}
template <class T>
void set(T& y, T value) {
  y = value;
}

// ---- a chunk of a plane ---------------------------------------------------------------------------

// What an element adds to the sums.
template <class V>
struct Sum {
  static constexpr int count = 1;
  void operator()(V x, V (&sum)[1]) const { sum[0] = sum[0] + x; }
};

template <class V>
struct SumsAbout {
  static constexpr int count = 2;
  V mean;
  void operator()(V x, V (&sum)[2]) const {
    const V d = x - mean;
    sum[0] = sum[0] + d;
    sum[1] = fma_(d, d, sum[1]);
  }
};

// Constant trip counts, or the compiler would put loops around single additions.
template <int kCount, class T>
T add_few(T* x) {
  constexpr int kHalf = kCount / 2;
  for (int e = 0; e < kHalf; ++e) x[e] = x[e] + x[e + kHalf];
  if constexpr (kHalf > 1) return add_few<kHalf>(x);
  return x[0];
}

// The tree of reduce.h over the first lanes, a power of two; all others are 0. At most kRegisters hold them.
template <int kRegisters, class T>
T tree(const T* lane, int used) {
  using L = Lanes<T>;
  if constexpr (kRegisters > 1)
    if (2 * used <= kRegisters * L::width) return tree<kRegisters / 2>(lane, used);
  typename L::V v[kRegisters];
  for (int r = 0; r < kRegisters; ++r) v[r] = L::load(lane + r * L::width);
  for (int half = kRegisters / 2; half > 0; half /= 2)
    for (int r = 0; r < half; ++r) v[r] = v[r] + v[r + half];
  alignas(64) T rest[L::width];
  L::store(rest, v[0]);
  return add_few<L::width>(rest);
}

// The same where a lane is a register of planes side by side; the sums are in the first one.
template <class T>
void tree_across(T* lane, int used) {
  using L = Lanes<T>;
  for (int half = used / 2; half > 0; half /= 2)
    for (int e = 0; e < half * L::width; e += L::width)
      L::store(lane + e, L::load(lane + e) + L::load(lane + e + half * L::width));
}

int used_lanes(int count) {
  return std::min<int>(kLanes, static_cast<int>(std::bit_ceil(static_cast<unsigned>(count))));
}

// Sums of consecutive elements.
template <class T, class S, template <class> class Terms>
class Row {
  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int kSums = Terms<V>::count;

 public:
  Row(const Terms<V>& terms, const Terms<T>& one) : terms_(terms), one_(one) {}

  void add(const S* x, int count) {
    const int used = used_lanes(count);
    int rest = count;
    for (int lane = 0; lane < used; lane += kGroup) {
      const int cut = add_group(x, lane, count);
      if (cut < count) rest = cut;
    }
    for (; rest + L::width <= count; rest += L::width) {
      V sum[kSums];
      for (int k = 0; k < kSums; ++k) sum[k] = L::load(lanes_[k] + rest % kLanes);
      terms_(L::load(x + rest), sum);
      for (int k = 0; k < kSums; ++k) L::store(lanes_[k] + rest % kLanes, sum[k]);
    }
    for (; rest < count; ++rest) {
      T sum[kSums];
      for (int k = 0; k < kSums; ++k) sum[k] = lanes_[k][rest % kLanes];
      one_(value_of(x[rest]), sum);
      for (int k = 0; k < kSums; ++k) lanes_[k][rest % kLanes] = sum[k];
    }
    for (int k = 0; k < kSums; ++k) sums[k] = tree<kLanes / L::width>(lanes_[k], used);
  }

  T sums[kSums];

 private:
  static constexpr int kRegisters = 4;  // for each sum: enough to keep the adders busy
  static constexpr int kGroup = kRegisters * L::width;
  static_assert(kLanes % kGroup == 0);

  // The turns that a group of lanes is in as a whole. Returns where the next one would be: of all groups, one
  // at most is cut by the end of the elements.
  int add_group(const S* x, int lane, int count) {
    V sum[kRegisters][kSums];
    for (auto& own : sum)
      for (V& s : own) s = splat<V>(T(0));
    int e = lane;
    for (; e + kGroup <= count; e += kLanes)
      for (int r = 0; r < kRegisters; ++r) terms_(L::load(x + e + r * L::width), sum[r]);
    for (int r = 0; r < kRegisters; ++r)
      for (int k = 0; k < kSums; ++k) L::store(lanes_[k] + lane + r * L::width, sum[r][k]);
    return e;
  }

  const Terms<V> terms_;
  const Terms<T> one_;
  alignas(64) T lanes_[kSums][kLanes];
};

template <class T, class S>
Piece measure_row(const S* x, int count) {
  using V = typename Lanes<T>::V;
  Row<T, S, Sum> sum({}, {});
  sum.add(x, count);
  const T mean = div(sum.sums[0], static_cast<T>(count));
  Row<T, S, SumsAbout> about({splat<V>(mean)}, {mean});
  about.add(x, count);
  return {static_cast<double>(mean), static_cast<double>(about.sums[0]), static_cast<double>(about.sums[1])};
}

// Whether with_storage<T> gives the type that the elements have.
template <class T>
bool is_direct(const Planes& t) {
  return (t.dtype == DType::f64) == (sizeof(T) == sizeof(double));
}

// Elements of an innermost run into a block.
template <class T>
void gather(const Planes& t, int64_t offset, int count, T* block) {
  if (t.stride[0] == 1 || !is_direct<T>(t))
    return load_run(t.data, t.dtype, offset, t.stride[0], count, block);
  // As load_run, with the dtype known outside of the loop.
  with_storage<T>(t.dtype, [&]<class S>(S) {
    const S* const x = static_cast<const S*>(t.data) + offset;
    for (int e = 0; e < count; ++e) block[e] = value_of(x[e * t.stride[0]]);
  });
}

template <class T>
void scatter(const Planes& t, int64_t offset, int count, const T* block) {
  with_storage<T>(t.dtype, [&]<class S>(S) {
    S* const y = static_cast<S*>(t.data) + offset;
    for (int e = 0; e < count; ++e) set(y[e * t.stride[0]], block[e]);
  });
}

template <class T>
Piece measure_gathered(const Planes& t, int64_t base, int64_t first, int count) {
  alignas(64) T block[kChunk];
  for_each_run(t.dims, t.size, t.stride, first, count,
               [&](int64_t offset, int at, int run) { gather(t, base + offset, run, block + at); });
  return measure_row<T>(block, count);
}

// Sums of a register of channels: of channel c in lane[k][c].
template <class T, class S, class Terms>
void add_across(const Planes& t, const S* x, int64_t first, int count, const Terms& terms,
                T (&lanes)[Terms::count][kLanes * Lanes<T>::width]) {
  using L = Lanes<T>;
  constexpr int kSums = Terms::count;
  const int used = used_lanes(count);
  for (auto& lane : lanes) std::fill_n(lane, used * L::width, T(0));
  for_each_run(t.dims, t.size, t.stride, first, count, [&](int64_t offset, int at, int run) {
    for (int e = 0; e < run; ++e) {
      const int lane = (at + e) % kLanes * L::width;
      typename L::V sum[kSums];
      for (int k = 0; k < kSums; ++k) sum[k] = L::load(lanes[k] + lane);
      terms(L::load(x + offset + e * t.stride[0]), sum);
      for (int k = 0; k < kSums; ++k) L::store(lanes[k] + lane, sum[k]);
    }
  });
  for (auto& lane : lanes) tree_across(lane, used);
}

template <class T, class S>
void measure_across(const Planes& t, const S* x, int64_t first, int count, Piece* pieces, int64_t pitch) {
  using L = Lanes<T>;
  using V = typename L::V;
  alignas(64) T lanes[2][kLanes * L::width];
  alignas(64) T sum[1][kLanes * L::width];
  alignas(64) T mean[L::width];
  add_across(t, x, first, count, Sum<V>{}, sum);
  L::store(mean, div(L::load(sum[0]), splat<V>(static_cast<T>(count))));
  add_across(t, x, first, count, SumsAbout<V>{L::load(mean)}, lanes);
  for (int c = 0; c < L::width; ++c)
    pieces[c * pitch] = {static_cast<double>(mean[c]), static_cast<double>(lanes[0][c]),
                         static_cast<double>(lanes[1][c])};
}

// A chunk of some channels of a sample; the pieces of neighbouring channels are `pitch` apart.
void measure_chunk(const Planes& t, bool across, int64_t sample, int64_t channel, int channels, int64_t chunk,
                   Piece* pieces, int64_t pitch) {
  const int64_t first = chunk * kChunk;
  const int count = static_cast<int>(std::min<int64_t>(kChunk, t.numel - first));
  const int64_t base = sample * t.sample_stride + channel * t.channel_stride;
  with_arithmetic(t.wide, [&]<class T>(T) {
    constexpr int kWidth = Lanes<T>::width;
    int c = 0;
    if (is_direct<T>(t))
      with_storage<T>(t.dtype, [&]<class S>(S) {
        const S* const x = static_cast<const S*>(t.data) + base;
        if (across) {
          for (; c + kWidth <= channels; c += kWidth)
            measure_across<T>(t, x + c, first, count, pieces + c * pitch, pitch);
        } else if (is_contiguous(t)) {
          for (; c < channels; ++c)
            pieces[c * pitch] = measure_row<T>(x + c * t.channel_stride + first, count);
        }
      });
    for (; c < channels; ++c)
      pieces[c * pitch] = measure_gathered<T>(t, base + c * t.channel_stride, first, count);
  });
}

// ---- a plane --------------------------------------------------------------------------------------

// The sum of term(chunk), in the order of reduce.h.
template <class Term>
double sum_over(int64_t chunks, const Term& term) {
  double slot[kSlots];
  const int used = reduce::used_slots(chunks);
  std::fill_n(slot, used, 0.0);
  for (int64_t c = 0; c < chunks; ++c) slot[c % kSlots] += term(c);
  for (int half = used / 2; half > 0; half /= 2)
    for (int s = 0; s < half; ++s) slot[s] += slot[s + half];
  return slot[0];
}

Moments moments_of(const Piece* pieces, int64_t numel) {
  const int64_t chunks = chunks_of(numel);
  const AboutNumber guess{pieces, numel, first_guess(pieces, numel)};
  const double sum = sum_over(chunks, [&](int64_t c) { return guess.sum(c); });
  const AboutNumber mean{pieces, numel, mean_of(guess.number, sum, numel)};
  const double squares = sum_over(chunks, [&](int64_t c) { return mean.squares(c); });
  return {mean.number, deviation_of(squares, numel)};
}

// The same for planes of one chunk each: nothing to add, and so a loop that compilers vectorise.
void moments_of_ones(const Piece* pieces, int channels, int64_t numel, Moments* moments) {
  for (int c = 0; c < channels; ++c) {
    const AboutNumber guess{pieces + c, numel, pieces[c].mean};
    const AboutNumber mean{pieces + c, numel, mean_of(guess.number, guess.sum(0), numel)};
    moments[c] = {mean.number, deviation_of(mean.squares(0), numel)};
  }
}

void measure(const Planes& t, bool across, int64_t sample, int64_t channel, int channels, Piece* pieces,
             Moments* moments) {
  const int64_t chunks = chunks_of(t.numel);
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    measure_chunk(t, across, sample, channel, channels, chunk, pieces + chunk, chunks);
  if (chunks == 1) return moments_of_ones(pieces, channels, t.numel, moments);
  for (int c = 0; c < channels; ++c) moments[c] = moments_of(pieces + c * chunks, t.numel);
}

Affine affine_of(const Params& p, const Moments& content, const Moments& target) {
  return p.x.wide ? affine<double>(p, content, target) : affine<float>(p, content, target);
}

// ---- the result -----------------------------------------------------------------------------------

template <class T>
struct Apply {
  T center, scale, offset;

  explicit Apply(const Affine& a)
      : center(static_cast<T>(a.center)), scale(static_cast<T>(a.scale)), offset(static_cast<T>(a.offset)) {}

  template <class V>
  V operator()(V x) const {
    return apply(splat<V>(center), splat<V>(scale), splat<V>(offset), x);
  }
};

template <class T, class S>
void write_row(const Apply<T>& f, const S* x, S* y, int64_t count, bool stream) {
  using L = Lanes<T>;
  const auto one = [&](int64_t e) { set(y[e], f(value_of(x[e]))); };
  int64_t e = 0;
  if (stream) {
    for (; e < count && reinterpret_cast<uintptr_t>(y + e) % kCacheLine != 0; ++e) one(e);
    for (; e + L::width <= count; e += L::width) L::stream(y + e, f(L::load(x + e)));
    stream_fence();
  } else {
    for (; e + L::width <= count; e += L::width) L::store(y + e, f(L::load(x + e)));
  }
  for (; e < count; ++e) one(e);
}

template <class T>
void write_gathered(const Planes& x, const Planes& y, const Apply<T>& f, int64_t x_base, int64_t y_base,
                    int64_t begin, int64_t end) {
  alignas(64) T block[kChunk];
  for (int64_t first = begin; first < end; first += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, end - first));
    for_each_run(x.dims, x.size, x.stride, first, count,
                 [&](int64_t offset, int at, int run) { gather(x, x_base + offset, run, block + at); });
    write_row(f, block, block, count, false);
    for_each_run(y.dims, y.size, y.stride, first, count,
                 [&](int64_t offset, int at, int run) { scatter(y, y_base + offset, run, block + at); });
  }
}

// A register of channels, element by element; x and y lie alike.
template <class T, class S>
void write_across(const Planes& t, const Affine* affine, const S* x, S* y, int64_t begin, int64_t end) {
  using L = Lanes<T>;
  using V = typename L::V;
  alignas(64) T numbers[3][L::width];
  for (int c = 0; c < L::width; ++c) {
    const Apply<T> f(affine[c]);
    numbers[0][c] = f.center, numbers[1][c] = f.scale, numbers[2][c] = f.offset;
  }
  const V center = L::load(numbers[0]), scale = L::load(numbers[1]), offset_ = L::load(numbers[2]);
  for (int64_t first = begin; first < end; first += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, end - first));
    for_each_run(t.dims, t.size, t.stride, first, count, [&](int64_t offset, int, int run) {
      for (int e = 0; e < run; ++e, offset += t.stride[0])
        L::store(y + offset, apply(center, scale, offset_, L::load(x + offset)));
    });
  }
}

bool lie_alike(const Planes& x, const Planes& y) {
  return y.channel_stride == 1 && std::equal(x.stride, x.stride + x.dims, y.stride);
}

// Elements [begin, end) of some channels of a sample.
void write(const Params& p, bool across, int64_t sample, int64_t channel, int channels, const Affine* affine,
           int64_t begin, int64_t end) {
  const Planes &x = p.x, &y = p.y;
  const int64_t x_base = sample * x.sample_stride + channel * x.channel_stride;
  const int64_t y_base = sample * y.sample_stride + channel * y.channel_stride;
  with_arithmetic(x.wide, [&]<class T>(T) {
    constexpr int kWidth = Lanes<T>::width;
    int c = 0;
    with_storage<T>(x.dtype, [&]<class S>(S) {
      const S* const from = static_cast<const S*>(x.data) + x_base;
      S* const to = static_cast<S*>(y.data) + y_base;
      if (across && lie_alike(x, y)) {
        for (; c + kWidth <= channels; c += kWidth)
          write_across<T>(x, affine + c, from + c, to + c, begin, end);
      } else if (is_contiguous(x) && is_contiguous(y)) {
        for (; c < channels; ++c)
          write_row(Apply<T>(affine[c]), from + c * x.channel_stride + begin,
                    to + c * y.channel_stride + begin, end - begin, p.stream);
      }
    });
    for (; c < channels; ++c)
      write_gathered(x, y, Apply<T>(affine[c]), x_base + c * x.channel_stride, y_base + c * y.channel_stride,
                     begin, end);
  });
}

// ---- groups and threads ---------------------------------------------------------------------------

int channels_from(const Params& p, const Shares& shares, int64_t channel) {
  return static_cast<int>(std::min<int64_t>(shares.width, p.channels - channel));
}

void run_group(const Params& p, const Shares& shares, int64_t group, Piece* pieces) {
  const int64_t first_sample = group / shares.panels, channel = group % shares.panels * shares.width;
  const int64_t end_sample = p.style_samples == 1 ? p.samples : first_sample + 1;
  const int channels = channels_from(p, shares, channel);
  const int step = shares.together ? channels : 1;
  Moments target[kPanel], content[kPanel];
  Affine affine[kPanel];
  if (has_style(p)) measure(p.style, shares.style_across, first_sample, channel, channels, pieces, target);
  for (int64_t sample = first_sample; sample < end_sample; ++sample) {
    if (!has_style(p))
      for (int c = 0; c < channels; ++c) target[c] = given(p, sample, channel + c);
    for (int first = 0; first < channels; first += step) {
      measure(p.x, shares.x_across, sample, channel + first, step, pieces, content);
      for (int c = 0; c < step; ++c) affine[c] = affine_of(p, content[c], target[first + c]);
      write(p, shares.x_across, sample, channel + first, step, affine, 0, p.x.numel);
    }
  }
}

// body(sample, channel, channels, chunk) for all of them
template <class Body>
void each_chunk(const Params& p, const Shares& shares, int64_t samples, int64_t chunks, const Team& team,
                const Body& body) {
  const int64_t all = samples * shares.panels * chunks;
  const int64_t parts = std::min(all, kPartsPerThread * team.threads);
  each_part(team, parts, [&](int64_t part) {
    for (int64_t n = all * part / parts; n < all * (part + 1) / parts; ++n) {
      const int64_t panel = n / chunks, channel = panel % shares.panels * shares.width;
      body(panel / shares.panels, channel, channels_from(p, shares, channel), n % chunks);
    }
  });
}

// Few planes: all threads measure their chunks, then all threads write.
void run_within(const Params& p, const Shares& shares, void* scratch, const Team& team) {
  Piece* const of_style = static_cast<Piece*>(scratch);
  Piece* const of_x = of_style + style_pieces(p);
  Affine* const affine = reinterpret_cast<Affine*>(of_style + all_pieces(p));
  const int64_t chunks = chunks_of(p.x.numel), style_chunks = chunks_of(p.style.numel);
  each_chunk(p, shares, p.style_samples, style_chunks, team,
             [&](int64_t sample, int64_t channel, int channels, int64_t chunk) {
               measure_chunk(p.style, shares.style_across, sample, channel, channels, chunk,
                             of_style + (sample * p.channels + channel) * style_chunks + chunk, style_chunks);
             });
  each_chunk(p, shares, p.samples, chunks, team,
             [&](int64_t sample, int64_t channel, int channels, int64_t chunk) {
               measure_chunk(p.x, shares.x_across, sample, channel, channels, chunk,
                             of_x + (sample * p.channels + channel) * chunks + chunk, chunks);
             });
  for (int64_t sample = 0; sample < p.samples; ++sample)
    for (int64_t channel = 0; channel < p.channels; ++channel) {
      const int64_t plane = sample * p.channels + channel;
      const int64_t other = p.style_samples == 1 ? channel : plane;
      const Moments target = has_style(p) ? moments_of(of_style + other * style_chunks, p.style.numel)
                                          : given(p, sample, channel);
      affine[plane] = affine_of(p, moments_of(of_x + plane * chunks, p.x.numel), target);
    }
  each_chunk(p, shares, p.samples, chunks, team,
             [&](int64_t sample, int64_t channel, int channels, int64_t chunk) {
               write(p, shares.x_across, sample, channel, channels, affine + sample * p.channels + channel,
                     chunk * kChunk, std::min(p.x.numel, (chunk + 1) * kChunk));
             });
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& p, void* scratch, const Team& team) {
  const Shares shares(p, team.threads);
  if (shares.within) return run_within(p, shares, scratch, team);
  each_part(shares.parts == 1 ? kAlone : team, shares.parts, [&](int64_t part) {
    Piece few[kStackPieces];
    Piece* const pieces =
        shares.pieces <= kStackPieces ? few : static_cast<Piece*>(scratch) + part * shares.pieces;
    const int64_t end = shares.groups * (part + 1) / shares.parts;
    for (int64_t group = shares.groups * part / shares.parts; group < end; ++group)
      run_group(p, shares, group, pieces);
  });
}

}  // namespace fastdiff::channel_affine

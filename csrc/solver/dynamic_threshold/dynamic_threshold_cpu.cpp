// SPDX-License-Identifier: Apache-2.0
// dynamic_threshold on the CPU, compiled once per ISA.
//
// A sample is read once per digit of its keys and once more for the result. Only the first digit is counted
// for every element; after it one key in a hundred or so still takes part, and looking for those is a loop
// over whole registers. Samples are shared out to the threads, or where they are too few, each sample's
// elements: counts are integers, so that no split changes a result.
#include <algorithm>

#include "core/runs.h"
#include "solver/dynamic_threshold/dynamic_threshold_math.h"

namespace fastdiff::dynamic_threshold {
namespace {

constexpr int kBlockBytes = 4096;               // of elements that are converted at a time
constexpr int kGroup = 64;                      // keys that are looked through at a time
constexpr int kWays = 4;                        // counters per bin: neighbours are often equal
constexpr int64_t kStretch = int64_t{1} << 30;  // elements that 32-bit counters can count
constexpr int64_t kFew = 128;                   // elements; fewer are compared each with each
constexpr int64_t kPartsPerThread = 4;          // evens out what threads get to do
constexpr uintptr_t kCacheLine = 64;

// The elements of one sample in the arithmetic type, block by block.
template <class T>
class Elements {
 public:
  static constexpr int kBlock = kBlockBytes / sizeof(T);

  Elements(const Params& p, int64_t sample)
      : p_(p),
        base_(sample * p.search.sample_stride),
        is_direct_(p.search.dims == 1 && p.search.stride[0] == 1 && size_of(p.x.dtype) == sizeof(T)) {}

  // body(elements, count) over [begin, end)
  template <class Body>
  void each_block(int64_t begin, int64_t end, const Body& body) {
    for (int64_t i = begin; i < end; i += kBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kBlock, end - i));
      body(block(i, count), count);
    }
  }

 private:
  const T* block(int64_t element, int count) {
    if (is_direct_) return static_cast<const T*>(p_.x.data) + base_ + element;
    const Walk& w = p_.search;
    for_each_run(w.dims, w.size, w.stride, element, count, [&](int64_t offset, int first, int run) {
      load_run(p_.x.data, p_.x.dtype, base_ + offset, w.stride[0], run, block_ + first);
    });
    return block_;
  }

  const Params& p_;
  const int64_t base_;
  const bool is_direct_;
  alignas(64) T block_[kBlock];
};

// ---- the search -----------------------------------------------------------------------------------

// The first digit of every key.
template <class T>
void count_all(const T* x, int count, uint32_t (&ways)[kWays][kBins], bool& has_nan) {
  using Key = typename Magnitude<T>::Key;
  Key top = 0;
  for (int e = 0; e < count; ++e) top = std::max(top, key_of(x[e]));
  has_nan |= top > Magnitude<T>::kInfinity;
  int e = 0;
  for (; e + kWays <= count; e += kWays)
    for (int way = 0; way < kWays; ++way) ++ways[way][Search<T>::bin(key_of(x[e + way]), 0)];
  for (; e < count; ++e) ++ways[0][Search<T>::bin(key_of(x[e]), 0)];
}

// A later digit of the keys that begin with the digits found: those in [first, first + width). Unsigned
// differences wrap, so that the least of them is that of the first key from there on.
template <class T>
struct Looked {
  using Key = typename Magnitude<T>::Key;
  Key first, width;
  Key above_distance = ~Key(0);  // from first + width

  Looked(const Search<T>& search, int digit)
      : first(search.prefix), width(Key(1) << Magnitude<T>::shift(digit - 1)) {}

  // The least key beyond the wanted ones. The distance of a smaller key has the top bit, which no key has.
  Key above() const {
    return above_distance > Magnitude<T>::kMask ? ~Key(0) : first + width + above_distance;
  }
};

// Whether one of `size` keys is wanted.
template <class T>
inline bool look(const T* x, int size, Looked<T>& looked) {
  using Key = typename Magnitude<T>::Key;
  const Key first = looked.first, end = looked.first + looked.width;
  Key nearest = ~Key(0), above = ~Key(0);
  for (int e = 0; e < size; ++e) {
    const Key key = key_of(x[e]);
    nearest = std::min(nearest, static_cast<Key>(key - first));
    above = std::min(above, static_cast<Key>(key - end));
  }
  looked.above_distance = std::min(looked.above_distance, above);
  return nearest < looked.width;
}

template <class T>
void count_some(const T* x, int count, int digit, Looked<T>& looked, uint32_t (&ways)[kWays][kBins]) {
  for (int begin = 0; begin < count; begin += kGroup) {
    const int size = std::min(kGroup, count - begin);
    // The constant is for the compiler: whole registers, unrolled.
    if (size == kGroup ? !look(x + begin, kGroup, looked) : !look(x + begin, size, looked)) continue;
    for (int e = begin; e < begin + size; ++e) {
      const auto key = key_of(x[e]);
      if (key - looked.first < looked.width) ++ways[e % kWays][Search<T>::bin(key, digit)];
    }
  }
}

template <class T>
void tally_part(const Params& p, int64_t sample, int64_t begin, int64_t end, int digit,
                const Search<T>& search, Tally<T>& tally) {
  Elements<T> elements(p, sample);
  Looked<T> looked(search, std::max(digit, 1));
  for (; begin < end; begin += kStretch) {
    uint32_t ways[kWays][kBins] = {};
    elements.each_block(begin, std::min(end, begin + kStretch), [&](const T* x, int count) {
      if (digit == 0) {
        count_all(x, count, ways, tally.has_nan);
      } else {
        count_some(x, count, digit, looked, ways);
      }
    });
    for (const auto& way : ways)
      for (int b = 0; b < kBins; ++b) tally.count[b] += way[b];
  }
  if (digit > 0) tally.above = looked.above();
}

// The whole sample's tally, its elements shared out to the team. parts: one for each thread.
template <class T>
Tally<T> tally_sample(const Params& p, int64_t sample, int digit, const Search<T>& search, Tally<T>* parts,
                      const Team& team) {
  Tally<T> whole;
  if (team.threads == 1) {
    tally_part(p, sample, 0, p.numel, digit, search, whole);
    return whole;
  }
  each_part(team, team.threads, [&](int64_t n) {
    parts[n] = Tally<T>{};
    const int64_t begin = p.numel * n / team.threads, end = p.numel * (n + 1) / team.threads;
    tally_part(p, sample, begin, end, digit, search, parts[n]);
  });
  for (int n = 0; n < team.threads; ++n) whole.add(parts[n]);
  return whole;
}

template <class T>
double search_threshold(const Params& p, int64_t sample, Tally<T>* parts, const Team& team) {
  using Key = typename Magnitude<T>::Key;
  const int digits = digits_of<T>(p.x.dtype);
  Search<T> search{0, position(p.ratio, p.numel).below};
  Key above = ~Key(0);
  for (int digit = 0; digit < digits; ++digit) {
    const Tally<T> tally = tally_sample(p, sample, digit, search, parts, team);
    if (digit == 0 && tally.has_nan) return threshold<T>(p, 0, 0, true);
    int bin = 0;
    int64_t before = 0;
    while (before + tally.count[bin] <= search.rank) before += tally.count[bin++];
    if (digit == digits - 1) {
      // The next order statistic: the same key, the next bin that has one, or the least beyond the bins.
      int next = bin;
      if (search.rank + 1 == before + tally.count[bin]) do
          ++next;
        while (next < kBins && tally.count[next] == 0);
      Search<T> other = search;
      if (next < kBins) other.found(digit, next, 0);
      above = next < kBins ? other.prefix : tally.above;
    }
    search.found(digit, bin, before);
  }
  return threshold<T>(p, search.prefix, above, false);
}

// The same for few elements, each compared with each: no bins to clear and to walk.
template <class T>
double search_few(const Params& p, int64_t sample) {
  using Key = typename Magnitude<T>::Key;
  const int n = static_cast<int>(p.numel);
  Key key[kFew];
  Elements<T>(p, sample).each_block(0, n, [&](const T* x, int count) {
    for (int e = 0; e < count; ++e) key[e] = key_of(x[e]);
  });
  const int64_t rank = position(p.ratio, n).below;
  Key found = 0, above = ~Key(0), top = 0;
  for (int i = 0; i < n; ++i) {
    Key less = 0, equal = 0, next = ~Key(0);
    for (int e = 0; e < n; ++e) {
      less += key[e] < key[i];
      equal += key[e] == key[i];
      next = std::min(next, key[e] > key[i] ? key[e] : ~Key(0));
    }
    top = std::max(top, key[i]);
    if (static_cast<int64_t>(less) > rank || rank >= static_cast<int64_t>(less + equal)) continue;
    found = key[i];
    above = rank + 1 < static_cast<int64_t>(less + equal) ? key[i] : next;
  }
  return threshold<T>(p, found, above, top > Magnitude<T>::kInfinity);
}

// ---- the result -----------------------------------------------------------------------------------

template <class T>
class Writer {
  using L = Lanes<T>;

 public:
  Writer(const Params& p, int64_t sample, double s)
      : p_(p), scale_(s), x_base_(sample * p.x.sample_stride), y_base_(sample * p.y.sample_stride) {}

  void run(int64_t begin, int64_t end) {
    const bool is_dense = p_.dims == 1 && p_.x.stride[0] == 1 && p_.y.stride[0] == 1;
    if (is_dense && (p_.x.dtype == DType::f64) == (sizeof(T) == sizeof(double))) {
      with_storage<T>(p_.x.dtype, [&]<class S>(S) {
        dense(static_cast<const S*>(p_.x.data) + x_base_, static_cast<S*>(p_.y.data) + y_base_, begin, end);
      });
    } else {
      for (int64_t i = begin; i < end; i += Elements<T>::kBlock)
        gathered(i, static_cast<int>(std::min<int64_t>(Elements<T>::kBlock, end - i)));
    }
  }

 private:
  template <class S>
  void dense(const S* x, S* y, int64_t begin, int64_t end) const {
    int64_t e = begin;
    if (p_.stream) {
      for (; e < end && reinterpret_cast<uintptr_t>(y + e) % kCacheLine != 0; ++e) one(x, y, e);
      for (; e + L::width <= end; e += L::width) L::stream(y + e, scale_(L::load(x + e)));
      stream_fence();
    } else {
      for (; e + L::width <= end; e += L::width) L::store(y + e, scale_(L::load(x + e)));
    }
    for (; e < end; ++e) one(x, y, e);
  }

  void one(const void* x, void* y, int64_t e) const {
    store_as<T>(y, p_.y.dtype, e, scale_(load_as<T>(x, p_.x.dtype, e)));
  }

  void gathered(int64_t element, int count) {
    for_each_run(p_.dims, p_.size, p_.x.stride, element, count, [&](int64_t offset, int first, int run) {
      load_run(p_.x.data, p_.x.dtype, x_base_ + offset, p_.x.stride[0], run, block_ + first);
    });
    for (int e = 0; e < count; e += L::width) L::store(block_ + e, scale_(L::load(block_ + e)));
    for_each_run(p_.dims, p_.size, p_.y.stride, element, count, [&](int64_t offset, int first, int run) {
      for (int j = 0; j < run; ++j)
        store_as<T>(p_.y.data, p_.y.dtype, y_base_ + offset + j * p_.y.stride[0], block_[first + j]);
    });
  }

  const Params& p_;
  const Scale<T> scale_;
  const int64_t x_base_, y_base_;
  alignas(64) T block_[Elements<T>::kBlock] = {};  // lanes past a block's count compute on whatever is here
};

// ---- samples and threads --------------------------------------------------------------------------

template <class T>
void run_sample(const Params& p, int64_t sample, Tally<T>* parts, const Team& team) {
  const double s = p.numel <= kFew ? search_few<T>(p, sample) : search_threshold<T>(p, sample, parts, team);
  each_part(team, team.threads, [&](int64_t n) {
    // Cut at cache lines: a line that two threads write goes back and forth between them.
    const auto cut = [&](int64_t part) {
      const int64_t at = p.numel * part / team.threads;
      return part == team.threads ? p.numel : at - at % static_cast<int64_t>(kCacheLine);
    };
    Writer<T>(p, sample, s).run(cut(n), cut(n + 1));
  });
}

template <class T>
void run_samples(const Params& p, void* scratch, const Team& team) {
  const int64_t threads = team.threads;
  const bool splits_evenly = p.samples % threads == 0 || p.samples >= kPartsPerThread * threads;
  if (threads == 1 || p.samples * p.numel < kSerialNumel) {
    for (int64_t sample = 0; sample < p.samples; ++sample) run_sample<T>(p, sample, nullptr, kAlone);
  } else if (splits_evenly || p.numel < kSerialNumel) {
    const int64_t parts = std::min(p.samples, kPartsPerThread * threads);
    each_part(team, parts, [&](int64_t n) {
      for (int64_t sample = p.samples * n / parts; sample < p.samples * (n + 1) / parts; ++sample)
        run_sample<T>(p, sample, nullptr, kAlone);
    });
  } else {
    for (int64_t sample = 0; sample < p.samples; ++sample)
      run_sample<T>(p, sample, static_cast<Tally<T>*>(scratch), team);
  }
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  if (params.compute_double) {
    run_samples<double>(params, scratch, team);
  } else {
    run_samples<float>(params, scratch, team);
  }
}

}  // namespace fastdiff::dynamic_threshold

// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention in bfloat16 on CPUs with AMX.
//
// Strips as on other CPUs, with the products in tiles: scores are 16 keys by 16 queries, sums 16 elements of
// values by 16 queries. Queries are packed once for a block of them, keys and values once for as long as the
// thread's memory holds them; probabilities are rounded to bfloat16 where their scores were.
//
// Floor, in cycles per pair of tokens: 4 D operations at 2048 a cycle, 0.13 for D = 64, and an exponential of
// 13 instructions for 16 pairs at two a cycle, 0.41. Measured by themselves, in cycles of the time stamp
// counter, which is slower than the core: scores 0.13 and sums 0.16, with what they load and store,
// exponentials 0.35, maxima 0.06. So it is the exponentials that bound it. The products hardly hide behind
// them: spread among them they took as long. The whole takes about 0.8 if keys stay in the first cache, 1.0
// in the second.
#include "attention/block_sparse_attention/block_sparse_attention_strips.h"
#include "core/tiles_amx.h"

namespace fastdiff::block_sparse_attention {
namespace {

constexpr int tiles_of(int64_t n) {
  return static_cast<int>((n + kTile - 1) / kTile);
}

// x = 2^(factor x - subtract[lane]) for the keys there are and 0 for those that fill up a step of the tiles,
// rounded and in pairs of keys, the n-th pair in the row of score n; adds each lane's sum before rounding to
// `sum`.
template <int kRegisters>
void exponentials_in_pairs(const Block<float>& x, float factor, const float* subtract,
                           Lanes<float>::V (&sum)[kRegisters]) {
  using L = Lanes<float>;
  using V = L::V;
  constexpr int w = L::width;
  V less[kRegisters];
  for (int n = 0; n < kRegisters; ++n) less[n] = L::load(subtract + n * w);
  const V zero = splat<V>(0.0f), times = splat<V>(factor);
  const int pairs = static_cast<int>(rounded_up(x.keys, kTileStep)) / 2;
  for (int i = 0; i < pairs; ++i)
#pragma GCC unroll 4
    for (int n = 0; n < kRegisters; ++n) {
      const float* const from = x.data + 2 * i * x.row + n * w;
      const V p = 2 * i < x.keys ? fast_exp2(sub(mul(L::load(from), times), less[n])) : zero;
      const V next = 2 * i + 1 < x.keys ? fast_exp2(sub(mul(L::load(from + x.row), times), less[n])) : zero;
      sum[n] = add(sum[n], add(p, next));
      store_pairs(x.data + i * x.row + n * w, p, next);
    }
}

class TileProducts {
 public:
  static constexpr int kMostRegisters = 2;  // two tiles: a strip and what it needs stay in the first cache

  TileProducts(const Params& p, const Room& room, Taker<float>& take)
      : p_(p), room_(p), factor_(static_cast<float>(p.scale * kLog2E)) {
    queries_ = reinterpret_cast<BfloatPair*>(take(room.queries));
    scores_ = take(room.scores);
    slots_ = reinterpret_cast<bfloat16_t*>(take(room_.slots * room_.slot() / 2));
    held_ = reinterpret_cast<int64_t*>(take(rounded_up(2 * room_.slots, kMostWidth)));
    rows_ = reinterpret_cast<bfloat16_t*>(take(room_.keys * room_.key_dim / 2));
    std::fill_n(held_, room_.slots, int64_t{-1});
    set_up_tiles();
  }
  void leave() { release_tiles(); }

  int dim() const { return static_cast<int>(room_.dim); }

  // Strips [key_dim / 2][lanes] of pairs.
  void load(const Queries& q, int lanes, float*) {
    const int64_t pairs = room_.key_dim / 2;
    for (int first = 0; first < rounded_up(q.count, lanes); first += kTile) {
      const int count = std::clamp(q.count - first, 0, kTile);
      load_rows(p_.q, p_.q.rows(q.b, q.h, q.first + first), count, kTile, rows_);
      if (p_.q_end.data != nullptr) mix(p_.q_end.rows(q.b, q.h, q.first + first), count);
      BfloatPair* const strip = queries_ + (first / lanes * pairs) * lanes + first % lanes;
      for (int64_t i = 0; i < pairs; i += kTile)
        transpose_words(rows_ + 2 * i, pairs, strip + i * lanes, lanes);
    }
  }

  void enter(const Queries& q, int column, Plan::Block block) {
    const int64_t kv = q.h / (p_.extent.heads / p_.extent.kv_heads);
    const int64_t name = (q.b * p_.extent.kv_heads + kv) * p_.plan.key_blocks + column;
    const int64_t slot = column % room_.slots;
    const int64_t keys = rounded_up(block.count, kTileStep);
    bfloat16_t* const k = slots_ + slot * room_.slot();
    bfloat16_t* const v = k + room_.keys * room_.key_dim;
    keys_ = block.count;
    k_ = k;
    v_ = v;
    if (held_[slot] == name) return;
    held_[slot] = name;
    load_rows(p_.v, p_.v.rows(q.b, kv, block.first), block.count, keys, rows_);
    for (int64_t j = 0; j < keys; j += kTileStep)
      for (int64_t d = 0; d < room_.dim; d += kTile)
        transpose_elements(rows_ + j * room_.key_dim + d, room_.key_dim, v + d * room_.keys + j, room_.keys);
    load_rows(p_.k, p_.k.rows(q.b, kv, block.first), block.count, keys, k);
  }

  template <int kRegisters>
  void attend(int first, const Bias<float>& bias, const Running<float>& running, float* sums) {
    constexpr int lanes = kRegisters * Lanes<float>::width;
    const Block<float> scores{scores_, lanes, keys_};
    tile_products<false, kRegisters>(k_, room_.key_dim, queries_ + first * (room_.key_dim / 2), lanes,
                                     static_cast<int>(room_.key_dim) / kTileStep, scores_, lanes,
                                     tiles_of(keys_));
    const auto factor = splat<Lanes<float>::V>(factor_);
    softmax_block<kRegisters>(
        scores, bias, running, [factor](auto s) { return mul(s, factor); },
        [&](bool plain, auto& sum) {
          exponentials_in_pairs<kRegisters>(scores, plain ? factor_ : 1.0f, running.highest, sum);
        });
    shrink<lanes>(running.shrink, sums);
    tile_products<true, kRegisters>(v_, room_.keys, reinterpret_cast<const BfloatPair*>(scores_), lanes,
                                    static_cast<int>(rounded_up(keys_, kTileStep)) / kTileStep, sums, lanes,
                                    tiles_of(dim()));
  }

  // By squares of words: pairs of bfloat16, or the floats of a split.
  void store(const Queries& q, const float* results, int lanes) {
    const bool paired = p_.out.dtype == DType::bf16;
    if (p_.out.element != 1) return store_strips(p_, q, results, lanes, dim());
    using L = Lanes<float>;
    const int elements = paired ? kTileStep : kTile, halves = paired ? 1 : 2;  // of a word
    uint32_t columns[kTile * kTile] = {}, rows[kTile * kTile];
    auto* const out = static_cast<bfloat16_t*>(p_.out.data);
    for (int first = 0; first < q.count; first += kTile)
      for (int begin = 0; begin < p_.extent.head_dim; begin += elements) {
        const int64_t place = int64_t{first / lanes} * lanes * dim() + first % lanes;
        const float* const strip = results + place + int64_t{begin} * lanes;
        const int count = std::min(p_.extent.head_dim - begin, elements);
        for (int d = 0; paired && d < count; d += 2)
          store_as_pairs(columns + d / 2 * kTile, L::load(strip + d * lanes),
                         L::load(strip + (d + 1) * lanes));
        if (paired) {
          transpose_words(columns, kTile, rows, kTile);
        } else {
          transpose_words(strip, lanes, rows, kTile);
        }
        for (int n = 0; n < std::min(q.count - first, kTile); ++n) {
          const int64_t at = p_.out.at(q.b, q.h, q.first + first + n) + q.split * p_.out_of_split + begin;
          copy_elements(rows + n * kTile, count * halves, out + at * halves);
        }
      }
  }

 private:
  // [count][key_dim], filled up with zeros to `whole` rows.
  void load_rows(const Heads& t, const Rows& rows, int64_t count, int64_t whole, bfloat16_t* to) const {
    const auto* const data = static_cast<const bfloat16_t*>(t.data);
    const int dim = p_.extent.head_dim;
    for (int n = 0; n < whole; ++n, to += room_.key_dim) {
      const int there = n < count ? dim : 0;
      const bfloat16_t* const row = data + (there > 0 ? rows.at(n) : 0);
      if (t.element == 1) {
        for (int d = 0; d < room_.key_dim; d += kTileStep) copy_and_fill(row + d, there - d, to + d);
      } else {
        for (int d = 0; d < room_.key_dim; ++d) to[d] = d < there ? row[d * t.element] : bfloat16_t{0};
      }
    }
  }

  // The rows of queries, with those of q_end.
  void mix(const Rows& end, int count) {
    const auto* const data = static_cast<const bfloat16_t*>(p_.q_end.data);
    const auto mix = static_cast<float>(p_.mix);
    for (int n = 0; n < count; ++n)
      for (int d = 0; d < p_.extent.head_dim; ++d) {
        bfloat16_t& x = rows_[n * room_.key_dim + d];
        const float begin = widen(x);
        x = to_bfloat16(fma_(mix, widen(data[end.at(n) + d * p_.q_end.element]) - begin, begin));
      }
  }

  // sums *= factors, unless all of them are 1, as they are once the highest scores have been seen.
  template <int kLanes>
  void shrink(const float* factors, float* sums) const {
    bool same = true;
    for (int n = 0; n < kLanes; ++n) same &= factors[n] == 1.0f;
    if (same) return;
    for (int64_t d = 0; d < room_.dim; ++d)
      for (int n = 0; n < kLanes; ++n) sums[d * kLanes + n] *= factors[n];
  }

  const Params& p_;
  const TileRoom room_;
  const float factor_;
  BfloatPair* queries_;
  float* scores_;
  bfloat16_t *slots_, *rows_;
  int64_t* held_;  // which block each slot has
  const bfloat16_t *k_ = nullptr, *v_ = nullptr;
  int keys_ = 0;
};

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& params, void* scratch, const Team& team) {
  if (params.tiles) {
    run_all<float, TileProducts>(params, scratch, team);
  } else {
    Cpu<Isa::avx512>::run(params, scratch, team);
  }
}

}  // namespace fastdiff::block_sparse_attention

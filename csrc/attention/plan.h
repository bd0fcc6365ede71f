// SPDX-License-Identifier: Apache-2.0
// Which blocks of keys each block of queries attends to, and tensors of heads: what the rooms of this family
// have in common.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/view.h"

namespace fastdiff::attention {

// A plan as the caller has it.
struct PlanArguments {
  TensorView offsets;               // [B|1, H|1, R + 1], R = ceil(N_q / block_q) rows of blocks
  TensorView columns;               // [E]: row r has columns[offsets[r] ... offsets[r + 1] - 1], ascending
  std::optional<TensorView> masks;  // [E]: -1, or which of `bits` says what is seen in that block
  std::optional<TensorView> bits;  // [M, block_k, ceil(block_q / 32)]: bit q % 32 of word q / 32 for each key
  int64_t block_q = 0, block_k = 0;
  std::vector<int64_t> sets = {};  // keys of each set, side by side; empty: one set of all
};

inline constexpr int kMaxSets = 8;
// Whether a block is seen, while a plan is made; as a bool it is not seen in part.
inline constexpr uint8_t kUnseen = 0, kWhole = 1, kInPart = 2;

struct Plan {
  const int32_t* offsets = nullptr;
  int64_t sample_stride = 0, head_stride = 0;  // of offsets; 0 where samples or heads share one
  const int32_t* columns = nullptr;
  const int32_t* masks = nullptr;  // null: all blocks are seen whole
  const uint32_t* bits = nullptr;
  int64_t entries = 0;     // E
  int64_t mask_count = 0;  // M
  int block_q = 0, block_k = 0;
  int rows = 0;        // R
  int key_blocks = 0;  // those of all sets, ceil(N / block_k) each
  int words = 0;       // of a key's bits
  // Keys side by side: each set has blocks, and a softmax, of its own. Set s has the blocks set_blocks[s] ...
  // set_blocks[s + 1] - 1, of the keys set_keys[s] ... set_keys[s + 1] - 1.
  int sets = 1;
  int set_blocks[kMaxSets + 1] = {}, set_keys[kMaxSets + 1] = {};

  struct Block {
    int first, count;  // keys
  };
  constexpr Block keys_of(int set, int column) const {
    const int first = set_keys[set] + (column - set_blocks[set]) * block_k;
    const int left = set_keys[set + 1] - first;
    return {first, left < block_k ? left : block_k};
  }

  // The offsets of one head: [R + 1]
  constexpr const int32_t* of(int64_t sample, int64_t head) const {
    return offsets + sample * sample_stride + head * head_stride;
  }
  // Key k of block: [words]
  const uint32_t* bits_of(int64_t entry) const {
    if (masks == nullptr || masks[entry] < 0) return nullptr;
    return bits + static_cast<int64_t>(masks[entry]) * block_k * words;
  }
};

// Where the tokens of a head are, from one of them on.
struct Rows {
  int64_t first;         // element of token 0, or of the first one here if there is no index
  int64_t row;           // elements between tokens
  const int64_t* index;  // the tokens' numbers; null: one after the other
  int64_t index_step;    // from one number to the next

  FASTDIFF_HD int64_t number(int n) const { return index ? index[n * index_step] : n; }
  FASTDIFF_HD int64_t at(int n) const { return first + number(n) * row; }
};

// A tensor [B, H, N, D] of any float dtype, or of some of its tokens; strides in elements.
struct Heads {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t sample = 0, head = 0, row = 0, element = 1;
  int64_t tokens = 0;                        // N
  const int64_t* index = nullptr;            // [B|1, M]: the tokens that are meant; null: all
  int64_t index_sample = 0, index_step = 1;  // its strides; 0: the same for all samples

  FASTDIFF_HD int64_t at(int64_t b, int64_t h, int64_t n) const { return b * sample + h * head + n * row; }
  FASTDIFF_HD Rows rows(int64_t b, int64_t h, int64_t first) const {
    if (index == nullptr) return {at(b, h, first), row, nullptr, 1};
    return {at(b, h, 0), row, index + b * index_sample + first * index_step, index_step};
  }
};

// Numbers [B, H, N] or [B, H, N_q, N_kv]; strides 0 where it is broadcast.
struct Scores {
  void* data = nullptr;  // null: none
  DType dtype = DType::f32;
  int64_t sample = 0, head = 0, query = 0, key = 0;

  constexpr int64_t at(int64_t b, int64_t h, int64_t q) const { return b * sample + h * head + q * query; }
};

// Where tokens are, in some numbering: [B|1, N], of the tokens that an index means.
struct Codes {
  const int64_t* data = nullptr;  // null: none
  int64_t sample = 0, step = 0;   // strides
  int64_t tokens = 0;             // N
  const int64_t* index = nullptr;
  int64_t index_sample = 0, index_step = 1;

  // Of a token that is not there, which others refuse, that of another one.
  FASTDIFF_HD int64_t of(int64_t b, int64_t n) const {
    const int64_t token = index == nullptr ? n : index[b * index_sample + n * index_step];
    return data[b * sample + (0 <= token && token < tokens ? token : 0) * step];
  }
};

// What is added to scores: numbers of pairs, or of keys; or a table for where they are to each other, whose
// entry is the difference of two codes. `key` of a table is the stride of its entries.
struct PairBias : Scores {
  Codes q_code, k_code;
  int64_t entries = 0;  // of the table; 0: none

  constexpr bool is_of_keys() const { return data != nullptr && query == 0 && entries == 0; }
  constexpr bool is_of_pairs() const { return data != nullptr && (query != 0 || entries != 0); }
};

// The sizes of a call.
struct Extent {
  int64_t samples = 0;              // B
  int64_t heads = 0, kv_heads = 0;  // H, and of keys and values; H is a multiple
  int64_t queries = 0, keys = 0;    // N_q, N_kv
  int head_dim = 0;                 // D
};

inline constexpr int kMaxHeadDim = 256;
inline constexpr int kMaxBlock = 256;

// The part-th of `parts` shares of all items, [first, last), alike by their cost(item) > 0.
struct Share {
  int64_t first, last;
};
template <class Cost>
Share share_of(int64_t items, int64_t part, int64_t parts, const Cost& cost) {
  int64_t total = 0;
  for (int64_t n = 0; n < items; ++n) total += cost(n);
  const int64_t begin = total * part / parts, end = total * (part + 1) / parts;
  Share share{items, items};
  int64_t before = 0;
  for (int64_t n = 0; n < items; ++n) {
    if (share.first == items && before >= begin) share.first = n;
    if (before >= end) {
      share.last = n;
      break;
    }
    before += cost(n);
  }
  if (share.first > share.last) share.first = share.last;
  return share;
}

// ---- the desk's part: plan_desk.cpp ---------------------------------------------------------------

// The tensors that attention is between, and which of their tokens.
struct Tokens {
  TensorView q;                        // [B, H, N_q, D]
  TensorView k, v;                     // [B, H_kv, N_kv, D]
  std::optional<TensorView> q_index;   // [B|1, M_q], int64: the queries that there are; all if not given
  std::optional<TensorView> kv_index;  // [B|1, M_kv]
};

struct BiasArguments {
  std::optional<TensorView> bias;  // [B|1, H|1, N_q|1, N_kv|1], or with codes [B|1, H|1, 1, T]
  std::optional<TensorView> q_code,
      k_code;  // [B|1, N_q], [B|1, N_kv], int64: of all tokens, with an index too
};

// On the CPU also that every token of an index is there. Throws Refusal.
Extent check_tokens(const char* op, const Tokens& tokens);

// What a result for these tokens looks like: `like` [B, H, N, D] with another N.
class Gathered {
 public:
  Gathered(const TensorView& like, int64_t tokens);
  const TensorView& view() const { return view_; }

 private:
  int64_t sizes_[4];
  TensorView view_;
};

// `t` has the dtype, shape and device of a tensor like `like`. Throws Refusal.
void check_like(const char* op, const char* argument, const TensorView& t, const char* like_name,
                const TensorView& like);

// Shapes and dtypes; on the CPU also that every block is there, in order and once. Throws Refusal.
Plan check_plan(const char* op, const PlanArguments& arguments, const Extent& extent, Device device);

// What the lse of q [B, H, N_q, D] looks like: [B, H, N_q], or [S, B, H, N_q] for S > 1 sets of keys; fp32
// (fp64 if q is).
class LseShape {
 public:
  explicit LseShape(const TensorView& q, size_t sets = 1);
  LseShape(const LseShape&) = delete;
  const TensorView& view() const { return view_; }

 private:
  int64_t sizes_[4];
  TensorView view_;
};

// Throws Refusal.
void check_lse(const char* op, const char* argument, const TensorView& lse, const LseShape& shape);

// On the CPU also that every entry is there. Throws Refusal.
PairBias check_bias(const char* op, const BiasArguments& arguments, const Extent& extent,
                    const Tokens& tokens);

// A multiple of 16 up to kMaxBlock. Throws Refusal.
void check_block(const char* op, const char* argument, int64_t block);

// `t` has the dtype, shape and device of `want`. Throws Refusal.
void check_result(const char* op, const char* argument, const TensorView& t, const TensorView& want);

// A tensor and the name of its argument; no view: it is not given.
struct Named {
  const char* name;
  const TensorView* view;
};

// Those of the plan, the tokens and the bias, and `others`.
std::vector<Named> inputs_of(const PlanArguments& plan, const Tokens& tokens, const BiasArguments& bias,
                             std::vector<Named> others);

// No result has elements that share memory, or shares any with an input or another result. Throws Refusal.
void check_results(const char* op, const std::vector<Named>& results, const std::vector<Named>& inputs);

Heads heads_of(const TensorView& t, const std::optional<TensorView>& index = std::nullopt);
Scores lse_of(const TensorView& t);  // of the first set

}  // namespace fastdiff::attention

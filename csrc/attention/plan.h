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
};

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
  int key_blocks = 0;  // ceil(N_kv / block_k)
  int words = 0;       // of a key's bits

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

// [B, H, N_q] for q [B, H, N_q, D], fp32 (fp64 if q is). Throws Refusal.
void check_lse(const char* op, const char* argument, const TensorView& lse, const TensorView& q);

// [B|1, H|1, N_q|1, N_kv|1]. Throws Refusal.
Scores check_bias(const char* op, const TensorView& bias, const Extent& extent, Device device);

// A tensor and the name of its argument; no view: it is not given.
struct Named {
  const char* name;
  const TensorView* view;
};

// Those of the plan and the tokens, and `others`.
std::vector<Named> inputs_of(const PlanArguments& plan, const Tokens& tokens, std::vector<Named> others);

// No result has elements that share memory, or shares any with an input or another result. Throws Refusal.
void check_results(const char* op, const std::vector<Named>& results, const std::vector<Named>& inputs);

Heads heads_of(const TensorView& t, const std::optional<TensorView>& index = std::nullopt);
Scores lse_of(const TensorView& t);

}  // namespace fastdiff::attention

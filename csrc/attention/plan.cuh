// SPDX-License-Identifier: Apache-2.0
// A plan on the device, where nobody has checked it: whatever it holds, nothing out of bounds is read.
#pragma once

#include "attention/bias.h"
#include "core/launch.cuh"

namespace fastdiff::attention {
namespace {

// Shared memory of a block of threads that every GPU from sm_80 on has.
inline constexpr size_t kMostSmem = 99 * 1024;

// ---- the work of a block of threads ----------------------------------------------------------------------

// Some queries of one row of blocks of a head.
struct QueryTile {
  int sample, head, row;
  int first;          // query
  int within, count;  // the first one's place in its block, and how many there are; none: <= 0
};

FASTDIFF_HD constexpr int tiles_of(int block, int tile) {
  return (block + tile - 1) / tile;
}

inline int64_t query_tiles(const Extent& extent, const Plan& plan, int queries) {
  return extent.samples * extent.heads * plan.rows * tiles_of(plan.block_q, queries);
}

template <int kQueries>
__device__ __forceinline__ QueryTile query_tile(const Extent& extent, const Plan& plan, unsigned index) {
  const unsigned tiles = tiles_of(plan.block_q, kQueries), rows = plan.rows;
  const unsigned heads = static_cast<unsigned>(extent.heads);
  const unsigned list = index / tiles / rows;
  QueryTile tile{static_cast<int>(list / heads),
                 static_cast<int>(list % heads),
                 static_cast<int>(index / tiles % rows),
                 0,
                 0,
                 0};
  tile.within = static_cast<int>(index % tiles) * kQueries;
  tile.first = tile.row * plan.block_q + tile.within;
  tile.count = min(min(plan.block_q - tile.within, static_cast<int>(extent.queries) - tile.first), kQueries);
  return tile;
}

// Some keys of one block of a head of keys.
struct KeyTile {
  int first;                       // key
  int within, count;               // as of QueryTile
  const uint32_t* bits = nullptr;  // of the whole block; null: all is seen
};

inline int64_t key_tiles(const Extent& extent, const Plan& plan, int keys) {
  return extent.samples * extent.kv_heads * plan.key_blocks * tiles_of(plan.block_k, keys);
}

// The tile's keys; `list` is its head of keys, counted over all samples, and `block` its block.
template <int kKeys>
__device__ __forceinline__ KeyTile key_tile(const Extent& extent, const Plan& plan, unsigned index,
                                            unsigned& list, int& block) {
  const unsigned tiles = tiles_of(plan.block_k, kKeys), blocks = plan.key_blocks;
  list = index / tiles / blocks;
  block = static_cast<int>(index / tiles % blocks);
  KeyTile tile{0, static_cast<int>(index % tiles) * kKeys, 0, nullptr};
  tile.first = block * plan.block_k + tile.within;
  tile.count = min(min(plan.block_k - tile.within, static_cast<int>(extent.keys) - tile.first), kKeys);
  return tile;
}

// ---- tokens ----------------------------------------------------------------------------------------------

// The element where token n begins.
__device__ __forceinline__ int64_t place_of(const Heads& t, const Rows& rows, int n) {
  if (rows.index == nullptr) return rows.at(n);
  const int64_t token = rows.number(n);
  if (0 <= token && token < t.tokens) return rows.first + token * rows.row;
  device_refusal("fastdiff::block_sparse_attention: q_index and kv_index must be numbers of tokens");
  return rows.first;
}

// ---- entries ---------------------------------------------------------------------------------------------

struct Entries {
  int begin = 0, end = 0;
};

// Those of row r of a head; after a refusal none.
__device__ __forceinline__ Entries entries_of(const Plan& plan, int sample, int head, int r,
                                              const char* refusal) {
  const int32_t* const row = plan.of(sample, head) + r;
  const int begin = row[0], end = row[1];
  if (begin >= 0 && begin <= end && end <= plan.entries) return {begin, end};
  device_refusal(refusal);
  return {};
}

__device__ __forceinline__ const uint32_t* bits_of(const Plan& plan, int mask) {
  return mask < 0 ? nullptr : plan.bits + int64_t{mask} * plan.block_k * plan.words;
}

// The keys of a set that a row sees, at most kKeys of one block at a time; then those of the next set.
template <int kKeys>
class Walk {
 public:
  __device__ Walk(const Plan& plan, Entries entries, const char* refusal)
      : plan_(plan), entry_(entries.begin), end_(entries.end), refusal_(refusal) {
    read_ahead();
  }

  // Goes to the next tile of this set, if there is one.
  __device__ __forceinline__ bool next() {
    within_ += kKeys;
    if (within_ >= block_.count && !next_block()) return false;
    tile_.first = block_.first + within_;
    tile_.within = within_;
    tile_.count = min(kKeys, block_.count - within_);
    return true;
  }

  // Before the first tile of the next set.
  __device__ __forceinline__ void next_set() {
    ++set_;
    within_ = block_.count = 0;
  }

  __device__ __forceinline__ const KeyTile& tile() const { return tile_; }

 private:
  __device__ __forceinline__ bool next_block() {
    if (entry_ >= end_) return false;
    // Ascending from -1, so none is negative.
    if (ahead_ <= column_ || ahead_ >= plan_.key_blocks || mask_ < -1 || mask_ >= plan_.mask_count) {
      device_refusal(refusal_);
      entry_ = end_;
      return false;
    }
    if (ahead_ >= plan_.set_blocks[set_ + 1]) return false;  // of a later set
    column_ = ahead_;
    within_ = 0;
    block_ = plan_.keys_of(set_, column_);
    tile_.bits = bits_of(plan_, mask_);
    ++entry_;
    read_ahead();
    return true;
  }

  // A block early, so that nobody waits for it.
  __device__ __forceinline__ void read_ahead() {
    if (entry_ >= end_) return;
    ahead_ = plan_.columns[entry_];
    if (plan_.masks != nullptr) mask_ = plan_.masks[entry_];
  }

  const Plan& plan_;
  int entry_, end_;
  const char* const refusal_;
  int set_ = 0, column_ = -1, within_ = 0;
  Plan::Block block_{0, 0};
  int ahead_ = 0, mask_ = -1;  // of entry_
  KeyTile tile_{0, 0, 0, nullptr};
};

// The entry of row r that is this block of keys, or -1; after a refusal -1.
__device__ __forceinline__ int find_entry(const Plan& plan, int sample, int head, int r, int block,
                                          const char* refusal) {
  const Entries entries = entries_of(plan, sample, head, r, refusal);
  int begin = entries.begin, end = entries.end;
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (plan.columns[middle] < block)
      begin = middle + 1;
    else
      end = middle;
  }
  if (begin >= entries.end || plan.columns[begin] != block) return -1;
  if (plan.masks != nullptr && (plan.masks[begin] < -1 || plan.masks[begin] >= plan.mask_count)) {
    device_refusal(refusal);
    return -1;
  }
  return begin;
}

__device__ __forceinline__ const uint32_t* bits_of_entry(const Plan& plan, int entry) {
  return plan.masks == nullptr ? nullptr : bits_of(plan, plan.masks[entry]);
}

// The queries that see a block of keys, of all heads that read it: at most kQueries of one block at a time.
// All threads of the block go together, and look for the entries of as many rows at once.
template <int kQueries, int kThreads>
class QueryWalk {
 public:
  // `list`: the head of keys, counted over all samples. `entries` is shared memory: [kThreads].
  __device__ QueryWalk(const Plan& plan, const Extent& extent, unsigned list, int block, int* entries,
                       const char* refusal)
      : plan_(plan),
        queries_(static_cast<int>(extent.queries)),
        block_(block),
        entries_(entries),
        refusal_(refusal) {
    const auto kv_heads = static_cast<unsigned>(extent.kv_heads);
    const int group = static_cast<int>(extent.heads / extent.kv_heads);
    tile_.sample = static_cast<int>(list / kv_heads);
    tile_.head = static_cast<int>(list % kv_heads) * group - 1;
    end_ = tile_.head + 1 + group;
    first_row_ = plan.rows;
  }

  // Goes to the next tile, if there is one.
  __device__ __forceinline__ bool next() {
    tile_.within += kQueries;
    if (tile_.within >= block_queries_) {
      if (!next_row()) return false;
      tile_.within = 0;
      tile_.row = first_row_ + next_ - 1;
      block_queries_ = min(plan_.block_q, queries_ - tile_.row * plan_.block_q);
    }
    tile_.first = tile_.row * plan_.block_q + tile_.within;
    tile_.count = min(kQueries, block_queries_ - tile_.within);
    return true;
  }

  __device__ __forceinline__ const QueryTile& tile() const { return tile_; }
  // What is seen of the block of keys; null: all.
  __device__ __forceinline__ const uint32_t* bits() const { return bits_; }
  __device__ __forceinline__ int end_of_heads() const { return end_; }

 private:
  // Leaves next_ behind a row that sees the keys.
  __device__ __forceinline__ bool next_row() {
    for (;;) {
      while (next_ < rows_)
        if (const int entry = entries_[next_++]; entry >= 0) {
          bits_ = bits_of_entry(plan_, entry);
          return true;
        }
      if (!find_rows()) return false;
    }
  }

  __device__ __forceinline__ bool find_rows() {
    first_row_ += kThreads;
    if (first_row_ >= plan_.rows) {
      first_row_ = 0;
      if (++tile_.head >= end_ || plan_.rows == 0) return false;
    }
    const int own = first_row_ + static_cast<int>(threadIdx.x);
    __syncthreads();  // the entries before these have been read
    entries_[threadIdx.x] =
        own < plan_.rows ? find_entry(plan_, tile_.sample, tile_.head, own, block_, refusal_) : -1;
    __syncthreads();
    next_ = 0;
    rows_ = min(kThreads, plan_.rows - first_row_);
    return true;
  }

  const Plan& plan_;
  const int queries_;
  int end_;  // of heads
  const int block_;
  int* const entries_;  // of rows from first_row_ on
  const char* const refusal_;
  int first_row_, rows_ = 0, next_ = 0, block_queries_ = 0;
  QueryTile tile_{0, 0, 0, 0, 0, 0};
  const uint32_t* bits_ = nullptr;
};

// The element of a bias for a pair of tokens.
__device__ __forceinline__ int64_t element_of(const PairBias& bias, int64_t b, int64_t h, int64_t q,
                                              int64_t k) {
  if (bias.entries == 0) return bias.at(b, h, q) + k * bias.key;
  int64_t entry = bias.q_code.of(b, q) - bias.k_code.of(b, k);
  if (entry < 0 || entry >= bias.entries) {
    device_refusal("fastdiff::block_sparse_attention: q_code - k_code must be within the table");
    entry = 0;
  }
  return bias.at(b, h, 0) + entry * bias.key;
}

// Whether the query at place q of a block sees the key at place k.
__device__ __forceinline__ bool sees(const Plan& plan, const uint32_t* bits, int q, int k) {
  return bits == nullptr || (bits[k * plan.words + q / 32] >> (q % 32) & 1u) != 0;
}

}  // namespace
}  // namespace fastdiff::attention

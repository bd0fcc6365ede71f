// SPDX-License-Identifier: Apache-2.0
// list_blocks on the CPU, compiled once per ISA.
//
// An entry is written for every block, at a place that moves on only if the block is there: no branch depends
// on the pattern.
#include "attention/list_blocks/list_blocks_math.h"

namespace fastdiff::list_blocks {
namespace {

constexpr int64_t kSerialBlocks = 64 * 1024;  // fewer are not worth a second thread

template <bool kMasks>
void write_list(const Params& p, int64_t list) {
  const int64_t end = (list + 1) * p.room();
  int64_t number = list * p.room(), at = number;
  int32_t* const offsets = p.offsets.data + p.offsets_at(list);
  offsets[0] = static_cast<int32_t>(at);
  for (int64_t r = 0; r < p.rows; ++r) {
    const auto* const kinds =
        static_cast<const uint8_t*>(p.kinds.data) + p.kinds.at(list / p.heads, list % p.heads, r);
    for (int64_t c = 0; c < p.columns; ++c, ++number) {
      const uint8_t kind = kinds[c * p.kinds.element];
      p.found.data[at * p.found.step] = static_cast<int32_t>(c);  // at <= number < end
      if constexpr (kMasks) p.masks.data[at * p.masks.step] = mask_of(kind, number);
      at += kind != 0;
    }
    offsets[(r + 1) * p.offsets.step] = static_cast<int32_t>(at);
  }
  for (; at < end; ++at) {
    p.found.data[at * p.found.step] = 0;
    if constexpr (kMasks) p.masks.data[at * p.masks.step] = -1;
  }
}

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& p, const Team& team) {
  const int64_t parts = p.lists * p.room() < kSerialBlocks ? 1 : std::min<int64_t>(team.threads, p.lists);
  each_part(team, parts, [&](int64_t part) {
    for (int64_t list = p.lists * part / parts; list < p.lists * (part + 1) / parts; ++list)
      p.masks.data == nullptr ? write_list<false>(p, list) : write_list<true>(p, list);
  });
}

}  // namespace fastdiff::list_blocks

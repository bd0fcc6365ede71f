// SPDX-License-Identifier: Apache-2.0
// mask_blocks on the CPU, compiled once per ISA.
//
// Eight rows of the mask at a time become one row of bytes, a bit for each query, over a stretch of keys:
// long reads, and a loop that compilers vectorise. Four such rows are the words of a block.
#include "attention/mask_blocks/mask_blocks_math.h"

namespace fastdiff::mask_blocks {
namespace {

constexpr int kByte = 8;                      // queries
constexpr int64_t kStretch = 1024;            // keys, at least one block
constexpr int64_t kSerialNumel = 128 * 1024;  // smaller masks are not worth a second thread

class Worker {
 public:
  explicit Worker(const Params& p) : p_(p) {}

  // Row r of blocks.
  void row(int64_t list, int64_t r) {
    const int64_t stretch = kStretch / p_.block_k;  // blocks
    for (int64_t c = 0; c < p_.columns; c += stretch) {
      const int64_t last = std::min(p_.columns, c + stretch);
      read(list, r, c * p_.block_k, std::min(p_.keys, last * p_.block_k));
      for (int64_t n = c; n < last; ++n) write(list, r, n, (n - c) * p_.block_k);
    }
  }

 private:
  int64_t queries_of(int64_t r) const { return std::min<int64_t>(p_.block_q, p_.queries - r * p_.block_q); }
  int64_t keys_of(int64_t c) const { return std::min<int64_t>(p_.block_k, p_.keys - c * p_.block_k); }

  void read(int64_t list, int64_t r, int64_t first, int64_t last) {
    const attention::Heads& mask = p_.mask;
    const int64_t queries = queries_of(r), keys = last - first;
    const int64_t at = mask.at(list / p_.heads, list % p_.heads, r * p_.block_q) + first * mask.element;
    for (int64_t byte = 0; byte < 4 * p_.words; ++byte) {
      const uint8_t* rows[kByte];
      for (int n = 0; n < kByte; ++n) {
        const int64_t q = byte * kByte + n;
        rows[n] = q < queries ? row_of(at + q * mask.row, keys, n) : kNothing;
      }
      uint8_t* const bytes = bytes_[byte];
      for (int64_t k = 0; k < keys; ++k) {
        int eight = 0;
        for (int n = kByte - 1; n >= 0; --n) eight = 2 * eight + (rows[n][k] != 0);
        bytes[k] = static_cast<uint8_t>(eight);
      }
    }
  }

  const uint8_t* row_of(int64_t at, int64_t keys, int n) {
    const auto* const row = static_cast<const uint8_t*>(p_.mask.data) + at;
    if (p_.mask.element == 1) return row;
    for (int64_t k = 0; k < keys; ++k) copy_[n][k] = row[k * p_.mask.element];
    return copy_[n];
  }

  // Block c, whose first key is the first-th of the stretch.
  void write(int64_t list, int64_t r, int64_t c, int64_t first) const {
    const int64_t queries = queries_of(r), keys = keys_of(c);
    uint32_t* const bits = p_.bits.data + ((list * p_.rows + r) * p_.columns + c) * p_.bits.block;
    uint32_t sees = 0, misses = 0;
    for (int w = 0; w < p_.words; ++w) {
      const uint8_t* const bytes[] = {bytes_[4 * w] + first, bytes_[4 * w + 1] + first,
                                      bytes_[4 * w + 2] + first, bytes_[4 * w + 3] + first};
      const uint32_t all = bits_of(queries - 32 * w);
      uint32_t* const word = bits + w * p_.bits.word;
      for (int64_t k = 0; k < keys; ++k) {
        const uint32_t value = bytes[0][k] | uint32_t{bytes[1][k]} << 8 | uint32_t{bytes[2][k]} << 16 |
                               uint32_t{bytes[3][k]} << 24;
        word[k * p_.bits.key] = value;
        sees |= value;
        misses |= value ^ all;
      }
      for (int64_t k = keys; k < p_.block_k; ++k) word[k * p_.bits.key] = 0;
    }
    static_cast<uint8_t*>(
        p_.kinds.data)[p_.kinds.at(list / p_.heads, list % p_.heads, r) + c * p_.kinds.element] =
        kind_of(sees != 0, misses != 0);
  }

  static constexpr uint8_t kNothing[kStretch] = {};

  const Params& p_;
  uint8_t bytes_[attention::kMaxBlock / kByte][kStretch];
  uint8_t copy_[kByte][kStretch];
};

}  // namespace

template <>
void Cpu<kIsa>::run(const Params& p, const Team& team) {
  const int64_t rows = p.lists * p.rows;
  const int64_t parts =
      p.lists * p.queries * p.keys < kSerialNumel ? 1 : std::min<int64_t>(team.threads, rows);
  each_part(team, parts, [&](int64_t part) {
    Worker worker(p);
    for (int64_t n = rows * part / parts; n < rows * (part + 1) / parts; ++n)
      worker.row(n / p.rows, n % p.rows);
  });
}

}  // namespace fastdiff::mask_blocks

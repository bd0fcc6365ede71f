// SPDX-License-Identifier: Apache-2.0
// weight_linear: products of floating activations with a weight of few bits that is decoded on the way.
//
//   y = epilogue(sum_k x[m, k] w[n, k]), quant/epilogue.h
//   int8   w = q - zero[n], the scale of a row in the epilogue
//   int4   w = (q - zero[g, n]) scale[g, n] for group g = k / group: the scale is that of the group's sum
//   bf16   w as it is
//   fp8    w of e4m3, core/e4m3.h, the scale of a row in the epilogue. x as it is, or rounded to e4m3 as
//   well:
//          x = s[m] q, where s[m] is given or max |x| / 448, and the sums are those of q, times s[m]
//
// x is widened to float32 and so are all products and sums: fma in the order of k over a group, or 256
// elements, and over those sums in theirs. So a row's bits depend on no other row, on no instruction set and
// on no thread count. With the tiles of AMX x stays bfloat16, w is rounded to it (exact but for int4), and
// the order is theirs. Rows that are rounded to e4m3 are multiplied so whatever x was.
//
// Floor, per thread of a CPU of 3 GHz: 2 M N K / (32 operations a cycle with AVX2, 64 with AVX-512, 1024 with
// AMX); below 8 rows or so the weight from memory: N K bytes, half of them for int4, twice as many for bf16.
#pragma once

#include <cstdint>
#include <optional>

#include "core/isa.h"
#include "core/team.h"
#include "quant/epilogue.h"

namespace fastdiff::weight_linear {

// The numbers that the schema has.
enum class Scheme : int8_t { int8, int4, bf16, fp8 };
inline constexpr int kSchemes = 4;

// In panels, eight neighbours along K of 16 columns are so many rows of 16 words of 4 bytes, and a word is
//   int8   4 neighbours along K, and so for fp8
//   int4   8: byte i has in its low half q + 8 of the i-th, in its high half that of the one 4 after it
//   bf16   2
FASTDIFF_HD constexpr int words_of_eight(Scheme scheme) {
  return scheme == Scheme::bf16 ? 4 : scheme == Scheme::int4 ? 1 : 2;
}
inline constexpr int kEight = 8;
inline constexpr int kWordRow = 4 * quant::kPanel;  // bytes

inline constexpr int kBlock = 256;                 // elements along K that are added up by themselves
inline constexpr int kBlockStride = kBlock + 16;   // their floats in memory: rows do not share cache sets
inline constexpr int64_t kRowUnit = 4;             // rows that are widened together
inline constexpr int64_t kTilesBytes = 772 << 10;  // of what a thread of AMX has: weights and sums

struct Arguments {
  TensorView x;                          // [..., K], floating, or bytes of e4m3
  std::optional<TensorView> x_scale;     // [1] or [M] float32
  TensorView weight;                     // panels: int8, uint8 (int4, fp8) or bfloat16
  std::optional<TensorView> scale;       // int8, fp8 [slots], int4 [ceil(K / group), slots]; float32
  std::optional<TensorView> zero_point;  // of this shape; int8: int32, int4: float32
  quant::EpilogueArguments epilogue;
  int64_t columns = 0;  // N
  int64_t scheme = 0;
  int64_t group = 0;     // of int4
  bool round_x = false;  // to e4m3
};

struct Params {
  quant::Epilogue epilogue;
  quant::Rows x;
  bool rounds = false;     // x to e4m3
  quant::Vectors x_scale;  // s then; none: by the largest magnitude of a row
  Scheme scheme = Scheme::int8;
  const char* weight = nullptr;
  const float* scale = nullptr;       // of int4
  const int32_t* integers = nullptr;  // zero points of int8, or null
  const float* zero_point = nullptr;  // of int4, or null
  int64_t group = 0;
  int64_t panel_bytes = 0;
  // Scratch memory.
  float* row_scale = nullptr;  // s [M], if rows are rounded; the epilogue's
  // x as [ceil(K / 256)][M][272], the ends of rows filled up with zeros to 8; or, for tiles of AMX and on
  // CUDA, as [M / 16][K / 32][16][32] of 16 bits, on CUDA also of float32 or e4m3, filled up with zeros
  // to 64.
  float* blocks = nullptr;
  float* rows = nullptr;  // [parts][4][K]: rows for the branch, and to be rounded
  char* tiles = nullptr;  // [threads][kTilesBytes], for AMX

  // Whether AMX multiplies, where there is one; decoding for fewer rows takes longer than the products.
  constexpr bool takes_tiles() const { return (rounds || x.dtype == DType::bf16) && epilogue.rows > 4; }
  constexpr int64_t padded_inner() const { return quant::round_up(epilogue.inner, kEight); }
  constexpr int64_t block_count() const { return quant::round_up(epilogue.inner, kBlock) / kBlock; }
  float* block_of(int64_t block, int64_t m) const {
    return blocks + (block * epilogue.rows + m) * kBlockStride;
  }
};

// Into how many parts the rows are cut to be widened: each has a buffer of its own.
inline int64_t parts_of_rows(const Params& p, const Team& team) {
  const int64_t most = (p.epilogue.rows * p.epilogue.inner + 32767) / 32768;
  return most < team.threads ? (most < 1 ? 1 : most) : team.threads;
}

// Checks all but the result. Throws Refusal.
void check(const Arguments& arguments);

// Checks the result and lays out the launch, but for scratch memory. Throws Refusal.
Params prepare(const Arguments& arguments, const TensorView& y);

// Cuts scratch memory, aligned to 64, into its parts; from null: only counts. Returns the number of bytes.
int64_t place_cpu(Params& params, const Team& team, void* scratch);
int64_t place_cuda(Params& params, void* scratch);

template <Isa>
struct Cpu {
  static void run(const Params& params, const Team& team);
};

void launch_cuda(const Params& params, int device, void* stream);

}  // namespace fastdiff::weight_linear

namespace fastdiff {
template <>
inline constexpr bool kHasTiles<weight_linear::Cpu> = true;
}  // namespace fastdiff

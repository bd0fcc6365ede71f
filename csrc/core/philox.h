// SPDX-License-Identifier: Apache-2.0
// Counter-based standard normal noise with the same bits on every backend.
//
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") keyed by
// the seed; the counter is (index / 4, offset). The four words of one block make the normals of the four
// consecutive elements 4q .. 4q+3, in two Box-Muller pairs. Logarithm, sine and cosine are polynomials
// fitted for this file (relative error below 1e-7), evaluated with fma_() in a fixed order.
#pragma once

#include <cstdint>

#include "core/lanes.h"

namespace fastdiff {
namespace {

// The stream of one sample: z(key, index) for index = 0, 1, 2, ...
struct NoiseKey {
  uint64_t seed;
  uint64_t offset;
};

template <class U>
struct Words4 {
  U w0, w1, w2, w3;
};

// index / 4 as two words -> four random words
template <class U>
FASTDIFF_HD Words4<U> philox(U block_low, U block_high, NoiseKey key) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  constexpr int kRounds = 10;
  Words4<U> c{block_low, block_high, splat<U>(static_cast<uint32_t>(key.offset)),
              splat<U>(static_cast<uint32_t>(key.offset >> 32))};
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    U high0, low0, high1, low1;
    mul_wide(c.w0, splat<U>(kMultiplier0), high0, low0);
    mul_wide(c.w2, splat<U>(kMultiplier1), high1, low1);
    c = {xor_(xor_(high1, c.w1), splat<U>(k0)), low1, xor_(xor_(high0, c.w3), splat<U>(k1)), low0};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return c;
}

// log(u) for u in (0, 1]: u = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = f - f^2/2 + f^3 P(f), f = m - 1
template <class F>
FASTDIFF_HD F log_of_unit(F u) {
  using U = typename WordOf<F>::type;
  constexpr float kP[] = {0.33333316f, -0.25000796f, 0.20002282f, -0.16624969f,
                          0.14181425f, -0.1312531f,  0.12879173f, -0.078653775f};
  constexpr float kLn2 = 0.69314718f;
  const U bits = as_bits(u);
  const U exponent = sub(shift_right<23>(add(bits, splat<U>(0x3f800000u - 0x3f3504f3u))), splat<U>(127u));
  const F m = as_float(sub(bits, shift_left<23>(exponent)));
  const F f = fma_(m, splat<F>(1.0f), splat<F>(-1.0f));
  F p = splat<F>(kP[7]);
  for (int i = 6; i >= 0; --i) p = fma_(p, f, splat<F>(kP[i]));
  const F f2 = mul(f, f);
  F log_m = fma_(mul(f2, f), p, f);
  log_m = fma_(f2, splat<F>(-0.5f), log_m);
  return fma_(float_from_signed(exponent), splat<F>(kLn2), log_m);
}

// One word w in [0, 2^32) -> (fl(w) + 1/2) 2^-32 in (0, 1], in float; so the radius is at most 6.76
template <class U>
FASTDIFF_HD typename FloatOf<U>::type unit_from_word(U w) {
  using F = typename FloatOf<U>::type;
  const F high = float_from_signed(shift_right<16>(w)), low = float_from_signed(and_(w, splat<U>(0xffffu)));
  const F value = fma_(high, splat<F>(65536.0f), low);
  return fma_(value, splat<F>(0x1p-32f), splat<F>(0x1p-33f));
}

template <class F>
struct CosSin {
  F cosine, sine;
};

// cos and sin of 2 pi w / 2^32; the reduction to [-pi/4, pi/4) is exact integer arithmetic
template <class U>
FASTDIFF_HD CosSin<typename FloatOf<U>::type> cos_sin_of_word(U w) {
  using F = typename FloatOf<U>::type;
  constexpr float kTurn = 1.4629180792671596e-9f;  // 2 pi / 2^32
  constexpr float kS[] = {-0.16666655f, 0.008332181f, -0.0001951756f};
  constexpr float kC[] = {0.041666646f, -0.0013887378f, 2.4439445e-05f};
  const U quadrant = shift_right<30>(add(w, splat<U>(0x20000000u)));
  const F t = mul(float_from_signed(sub(w, shift_left<30>(quadrant))), splat<F>(kTurn));
  const F t2 = mul(t, t);
  const F sine_tail = fma_(fma_(splat<F>(kS[2]), t2, splat<F>(kS[1])), t2, splat<F>(kS[0]));
  const F sine = fma_(mul(t, t2), sine_tail, t);
  const F cosine_tail = fma_(fma_(splat<F>(kC[2]), t2, splat<F>(kC[1])), t2, splat<F>(kC[0]));
  const F cosine = fma_(mul(t2, t2), cosine_tail, fma_(t2, splat<F>(-0.5f), splat<F>(1.0f)));
  // Odd quadrants swap the two; the signs follow from the quadrant's bits.
  const U swap = sub(splat<U>(0u), and_(quadrant, splat<U>(1u)));
  const U both = and_(xor_(as_bits(sine), as_bits(cosine)), swap);
  const U sine_sign = shift_left<30>(and_(quadrant, splat<U>(2u)));
  const U cosine_sign = shift_left<30>(and_(add(quadrant, splat<U>(1u)), splat<U>(2u)));
  return {as_float(xor_(xor_(as_bits(cosine), both), cosine_sign)),
          as_float(xor_(xor_(as_bits(sine), both), sine_sign))};
}

template <class U>
FASTDIFF_HD CosSin<typename FloatOf<U>::type> box_muller(U radius_word, U angle_word) {
  using F = typename FloatOf<U>::type;
  const F radius = sqrt_(mul(splat<F>(-2.0f), log_of_unit(unit_from_word(radius_word))));
  const CosSin<F> unit = cos_sin_of_word(angle_word);
  return {mul(radius, unit.cosine), mul(radius, unit.sine)};
}

// The normals of elements 4q .. 4q+3, q = block
template <class U>
FASTDIFF_HD void normal_block(U block_low, U block_high, NoiseKey key, typename FloatOf<U>::type z[4]) {
  const Words4<U> w = philox(block_low, block_high, key);
  const auto first = box_muller(w.w0, w.w1), second = box_muller(w.w2, w.w3);
  z[0] = first.cosine;
  z[1] = first.sine;
  z[2] = second.cosine;
  z[3] = second.sine;
}

// The normal of one element per lane, for elements in any order: the same value as normal_block gives it.
template <class U>
FASTDIFF_HD typename FloatOf<U>::type normal_at(U index_low, U index_high, NoiseKey key) {
  const U block_low = add(shift_right<2>(index_low), shift_left<30>(index_high));
  const Words4<U> w = philox(block_low, shift_right<2>(index_high), key);
  const U second = sub(splat<U>(0u), and_(shift_right<1>(index_low), splat<U>(1u)));
  const U odd = sub(splat<U>(0u), and_(index_low, splat<U>(1u)));
  const auto choose = [](U a, U b, U take_b) { return xor_(a, and_(xor_(a, b), take_b)); };
  const auto pair = box_muller(choose(w.w0, w.w2, second), choose(w.w1, w.w3, second));
  return as_float(choose(as_bits(pair.cosine), as_bits(pair.sine), odd));
}

}  // namespace
}  // namespace fastdiff

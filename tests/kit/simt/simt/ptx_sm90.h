// SPDX-License-Identifier: Apache-2.0
// The emulated twins of csrc/core/ptx_sm90.cuh. Contracts are stated there.
//
// A product is done when it is issued or, by the toss of a coin for a warp, when it is waited for: a kernel
// that gives shared memory back too early and one that reads sums too early both show. The four warps of a
// warpgroup are not held to each other.
#pragma once

#include <algorithm>

#include "simt/ptx.h"

namespace simt {

// e4m3: 1 sign, 4 exponent bits with bias 7, 3 mantissa bits; no infinity, NaN where all but the sign are 1.
inline float float_of_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 0xf, fraction = bits & 7;
  float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                  : std::ldexp(static_cast<float>(fraction | 8), exponent - 10);
  if ((bits & 0x7f) == 0x7f) magnitude = std::nanf("");
  return bits & 0x80 ? -magnitude : magnitude;
}

inline constexpr int kProductColumns = 128, kProductDepth = 32;

// The bytes of row n of B from the k-th on, 16 of them, through a descriptor of rows of 64 bytes in the
// 64-byte swizzle: address bits 4 and 5 are changed by bits 7 and 8.
inline const unsigned char* chunk_of_row(uint64_t descriptor, int n, int k) {
  const auto begin = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const auto eight_rows = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t at =
      begin + static_cast<uint32_t>(n / 8) * eight_rows + static_cast<uint32_t>(n % 8 * 64 + k);
  const unsigned char* const chunk = machine.shared.first_page() + (at ^ (at >> 3 & 0x30));
  if (descriptor >> 62 != 2 || begin % 512 > 48) machine.fail("wgmma: no descriptor of swizzled_rows()");
  if (!machine.shared.holds(chunk, 16)) machine.fail("wgmma: a row of B is not in shared memory");
  return chunk;
}

// Sums of exact products. Of integers they are exact.
inline int sum_of(const int64_t (&terms)[kProductDepth + 1]) {
  int64_t sum = 0;
  for (const int64_t term : terms) sum += term;
  return static_cast<int>(sum);
}

// Of e4m3, Hopper keeps 13 bits behind the point of the largest term, as far as is known, and drops the
// others.
inline float sum_of(const double (&terms)[kProductDepth + 1]) {
  double largest = 0, sum = 0;
  for (const double term : terms) {
    if (!std::isfinite(term)) return std::nanf("");
    largest = std::max(largest, std::fabs(term));
  }
  if (largest == 0) return 0.0f;
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 13);
  for (const double term : terms) sum += std::trunc(term / unit) * unit;
  return static_cast<float>(sum);
}

// Element: what A and B hold; Wide: the type of exact products.
template <class Element, class Wide, class Sum, class Widen>
void run_product(const Product* const* lanes) {
  static Wide a[16][kProductDepth], b[kProductColumns][kProductDepth];
  for (int n = 0; n < kProductColumns; ++n)
    for (int k = 0; k < kProductDepth; k += 16) {
      const unsigned char* const chunk = chunk_of_row(lanes[0]->descriptor, n, k);
      for (int i = 0; i < 16; ++i) b[n][k + i] = Widen{}(static_cast<Element>(chunk[i]));
    }
  for (int lane = 0; lane < kWarpSize; ++lane)
    for (int i = 0; i < 4; ++i)
      for (int e = 0; e < 4; ++e)
        a[lane / 4 + 8 * (i % 2)][4 * (lane % 4 + 4 * (i / 2)) + e] =
            Widen{}(element<Element>(lanes[lane]->a[i], e));
  for (int lane = 0; lane < kWarpSize; ++lane) {
    auto* const d = static_cast<Sum*>(lanes[lane]->sums);
    for (int i = 0; i < 64; ++i) {
      const Wide *const row = a[lane / 4 + 8 * (i / 2 % 2)], *const column =
                                                                 b[i / 4 * 8 + 2 * (lane % 4) + i % 2];
      Wide terms[kProductDepth + 1] = {lanes[lane]->add ? static_cast<Wide>(d[i]) : Wide{}};
      for (int k = 0; k < kProductDepth; ++k) terms[k + 1] = row[k] * column[k];
      d[i] = sum_of(terms);
    }
  }
}

inline void issue_product(const char* name, Product product, const Site& site) {
  Thread* me = machine.self;
  if (!me->products_fenced) machine.fail("wgmma: wgmma_fence has not given it its registers", &site);
  if (me->strayed)
    machine.fail("wgmma: the lanes of a warp have not come together since mbarrier_wait", &site);
  product.group = me->product_group;
  me->products.push_back(product);
  machine.collective(name, 0xffffffffu, me, site, [](Thread** lanes[kWarpSize], unsigned) {
    Thread* all[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      all[lane] = *lanes[lane];
      if (all[lane]->products.back().descriptor != all[0]->products.back().descriptor)
        machine.fail("wgmma: the lanes of a warp have different descriptors");
    }
    if (race_observer == nullptr && machine.random.coin())
      machine.do_products(all, all[0]->product_group + 1);
  });
}

}  // namespace simt

namespace fastdiff::ptx {

inline void mbarrier_init(uint64_t* barrier, int arrivals, simt::Site site = simt::Site::current()) {
  simt::check_aligned("mbarrier_init: the barrier", barrier, 8, site);
  simt::check_shared("mbarrier_init: the barrier", barrier, 8, site);
  simt::machine.make_mbarrier(barrier, arrivals);
}
inline void mbarrier_init_done() {
  simt::machine.show_mbarriers();
}
inline void mbarrier_arrive(uint64_t* barrier, simt::Site site = simt::Site::current()) {
  simt::machine.arrive(barrier, 0, site);
}
inline void mbarrier_expect(uint64_t* barrier, int bytes, simt::Site site = simt::Site::current()) {
  simt::machine.arrive(barrier, bytes, site);
}
inline void mbarrier_wait(uint64_t* barrier, bool odd, simt::Site site = simt::Site::current()) {
  simt::machine.wait(barrier, odd, site);
}

__attribute__((noinline)) inline void bulk_copy(void* shared, const void* global, int bytes,
                                                uint64_t* barrier, simt::Site site = simt::Site::current()) {
  simt::check_aligned("bulk_copy: the destination", shared, 16, site);
  simt::check_aligned("bulk_copy: the source", global, 16, site);
  simt::check_shared("bulk_copy: the destination", shared, static_cast<size_t>(bytes), site);
  if (bytes <= 0 || bytes % 16 != 0) simt::machine.fail(simt::text("bulk_copy: %d bytes", bytes), &site);
  simt::machine.copy_in_bulk(shared, global, bytes, barrier, __builtin_return_address(0), site);
}

template <int kRegisters>
void take_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
template <int kRegisters>
void leave_registers() {
  take_registers<kRegisters>();
}

inline void wgmma_fence() {
  simt::machine.self->products_fenced = true;
}
template <class Word, int kCount>
void wgmma_hold(Word (&)[kCount]) {}
inline void wgmma_commit() {
  ++simt::machine.self->product_group;
}
template <int kPending>
void wgmma_wait(simt::Site site = simt::Site::current()) {
  simt::Thread* me = simt::machine.self;
  simt::machine.collective("wgmma_wait", 0xffffffffu, me, site,
                           [](simt::Thread** lanes[simt::kWarpSize], unsigned) {
                             simt::Thread* all[simt::kWarpSize];
                             for (int lane = 0; lane < simt::kWarpSize; ++lane)
                               (all[lane] = *lanes[lane])->products_fenced = false;
                             simt::machine.do_products(all, all[0]->product_group - kPending);
                           });
}

inline void wgmma_m64n128k32(int (&d)[64], const uint32_t (&a)[4], uint64_t b, bool add,
                             simt::Site site = simt::Site::current()) {
  const auto widen = [](int8_t value) -> int64_t { return value; };
  simt::issue_product(
      "wgmma_m64n128k32",
      {d, {a[0], a[1], a[2], a[3]}, b, add, 0, simt::run_product<int8_t, int64_t, int, decltype(widen)>},
      site);
}
inline void wgmma_m64n128k32(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool add,
                             simt::Site site = simt::Site::current()) {
  const auto widen = [](uint8_t bits) -> double { return simt::float_of_e4m3(bits); };
  simt::issue_product(
      "wgmma_m64n128k32",
      {d, {a[0], a[1], a[2], a[3]}, b, add, 0, simt::run_product<uint8_t, double, float, decltype(widen)>},
      site);
}

}  // namespace fastdiff::ptx

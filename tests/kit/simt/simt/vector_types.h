// SPDX-License-Identifier: Apache-2.0
// CUDA's built-in vector types, with CUDA's sizes and alignments, and make_*.
#pragma once

#define SIMT_VECTOR_1(T, name, align)            \
  struct alignas(align) name##1 {                \
    T x;                                         \
  };                                             \
  inline constexpr name##1 make_##name##1(T x) { \
    return {x};                                  \
  }
#define SIMT_VECTOR_2(T, name, align)                 \
  struct alignas(align) name##2 {                     \
    T x, y;                                           \
  };                                                  \
  inline constexpr name##2 make_##name##2(T x, T y) { \
    return {x, y};                                    \
  }
#define SIMT_VECTOR_3(T, name, align)                      \
  struct alignas(align) name##3 {                          \
    T x, y, z;                                             \
  };                                                       \
  inline constexpr name##3 make_##name##3(T x, T y, T z) { \
    return {x, y, z};                                      \
  }
#define SIMT_VECTOR_4(T, name, align)                           \
  struct alignas(align) name##4 {                               \
    T x, y, z, w;                                               \
  };                                                            \
  inline constexpr name##4 make_##name##4(T x, T y, T z, T w) { \
    return {x, y, z, w};                                        \
  }

// Three-vectors are aligned like their elements, two- and four-vectors to their size, at most 16 bytes.
#define SIMT_VECTORS(T, name)           \
  SIMT_VECTOR_1(T, name, sizeof(T))     \
  SIMT_VECTOR_2(T, name, 2 * sizeof(T)) \
  SIMT_VECTOR_3(T, name, sizeof(T))     \
  SIMT_VECTOR_4(T, name, (4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16))

SIMT_VECTORS(signed char, char)
SIMT_VECTORS(unsigned char, uchar)
SIMT_VECTORS(short, short)
SIMT_VECTORS(unsigned short, ushort)
SIMT_VECTORS(int, int)
SIMT_VECTORS(unsigned int, uint)
SIMT_VECTORS(long, long)
SIMT_VECTORS(unsigned long, ulong)
SIMT_VECTORS(long long, longlong)
SIMT_VECTORS(unsigned long long, ulonglong)
SIMT_VECTORS(float, float)
SIMT_VECTORS(double, double)

#undef SIMT_VECTORS
#undef SIMT_VECTOR_1
#undef SIMT_VECTOR_2
#undef SIMT_VECTOR_3
#undef SIMT_VECTOR_4

// CUDA 13 names the alignment of the widest ones.
struct alignas(16) double4_16a {
  double x, y, z, w;
};
struct alignas(32) double4_32a {
  double x, y, z, w;
};

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int vx = 1, unsigned int vy = 1, unsigned int vz = 1) : x(vx), y(vy), z(vz) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// Vectors as wide as the machine's registers, and what attention does with them.
//
// A "unit" is the 32 bits that one lane of a dot product takes from each side: one float, or, where the machine
// multiplies bfloat16 (AVX512_BF16), two neighbouring bfloat16. Operands are packed as units, so that one matrix product
// serves both.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace sgjax {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kColumnVecs = 4;  // kColumnVecs x kTileRows accumulators stay in registers.
#elif defined(__AVX__)
constexpr int kLanes = 8, kColumnVecs = 2;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kColumnVecs = 4;
#else
constexpr int kLanes = 4, kColumnVecs = 2;
#endif
constexpr int kTileRows = 6;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecInt __attribute__((vector_size(4 * kLanes)));

struct BFloat16 {
  uint16_t bits;
};

inline Vec Load(const float* source) {
  Vec v;
  std::memcpy(&v, source, sizeof v);
  return v;
}
inline void Store(float* target, Vec v) { std::memcpy(target, &v, sizeof v); }
inline Vec Splat(float x) { return Vec{} + x; }
inline Vec SplatBits(const float* unit) {  // Not Splat: -0 and NaN patterns are pairs of bfloat16 here.
#if defined(__AVX512F__)
  int32_t bits;
  std::memcpy(&bits, unit, sizeof bits);
  return (Vec)_mm512_set1_epi32(bits);
#else
  return Vec{} + *unit;
#endif
}
inline Vec Max(Vec a, Vec b) { return a > b ? a : b; }

inline float MaxLane(Vec v) {
  float lanes[kLanes];
  Store(lanes, v);
  return *std::max_element(lanes, lanes + kLanes);
}
inline float SumLanes(Vec v) {
  float lanes[kLanes], sum = 0;
  Store(lanes, v);
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// 2^x to 2e-7 relative; 0 below 2^-126. x must be below 127.
inline Vec Exp2(Vec x) {
  const Vec round = Splat(12582912.f);  // 1.5 * 2^23: adding it leaves no fraction bits.
  Vec whole = (x + round) - round;
  Vec f = x - whole;
  Vec p = Splat(1.5403530e-4f);
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.f;
  VecInt exponent = __builtin_convertvector(whole, VecInt) << 23;
  Vec result = (Vec)((VecInt)p + exponent);
  return x < Splat(-126.f) ? Vec{} : result;
}

inline Vec Tanh(Vec x) {
  const Vec limit = Splat(15.f);
  x = x > limit ? limit : x < -limit ? -limit : x;
  return 1.f - 2.f / (1.f + Exp2(x * 2.8853901f));
}

// Lane j of row i becomes lane i of row j.
inline void Transpose(Vec (&rows)[kLanes]) {
#if defined(__AVX512F__)
  __m512 a[16], b[16];
  for (int i = 0; i < 8; ++i) {
    a[2 * i] = _mm512_unpacklo_ps((__m512)rows[2 * i], (__m512)rows[2 * i + 1]);
    a[2 * i + 1] = _mm512_unpackhi_ps((__m512)rows[2 * i], (__m512)rows[2 * i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a[i + j]), _mm512_castps_pd(a[i + j + 2])));
      b[i + 2 * j + 1] =
          _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a[i + j]), _mm512_castps_pd(a[i + j + 2])));
    }
  }
  for (int j = 0; j < 4; ++j) {
    __m512 even_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), odd_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
    __m512 even_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
    __m512 odd_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
    rows[j] = (Vec)_mm512_shuffle_f32x4(even_low, even_high, 0x88);
    rows[4 + j] = (Vec)_mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    rows[8 + j] = (Vec)_mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    rows[12 + j] = (Vec)_mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
#else
  float lanes[kLanes][kLanes];
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) lanes[j][i] = rows[i][j];
  std::memcpy(rows, lanes, sizeof lanes);
#endif
}

// How elements of type T become units (kPerUnit of them each) and are multiplied.
template <typename T>
struct Units;

template <>
struct Units<float> {
  static constexpr int kPerUnit = 1;
  static Vec Read(const float* source) { return Load(source); }
  static Vec Dot(Vec sum, Vec a, Vec b) { return sum + a * b; }
  static void StoreProbabilities(float* target, Vec low, Vec high) {
    Store(target, low);
    Store(target + kLanes, high);
  }
};

#if defined(__AVX512BF16__)
template <>
struct Units<BFloat16> {
  static constexpr int kPerUnit = 2;
  static Vec Read(const BFloat16* source) { return Load(reinterpret_cast<const float*>(source)); }
  static Vec Dot(Vec sum, Vec a, Vec b) { return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }
  static void StoreProbabilities(float* target, Vec low, Vec high) {
    Store(target, (Vec)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
  }
  // Units (first[i], second[i]) from the units of two rows.
  static void StoreInterleaved(float* target, Vec first, Vec second) {
    alignas(64) static constexpr auto kIndices = [] {
      std::array<int16_t, 64> indices{};
      for (int i = 0; i < 64; ++i) indices[i] = static_cast<int16_t>(i / 2 + 32 * (i % 2));
      return indices;
    }();
    for (int half = 0; half < 2; ++half) {
      const __m512i index = _mm512_load_si512(&kIndices[32 * half]);
      Store(target + half * kLanes, (Vec)_mm512_permutex2var_epi16((__m512i)first, index, (__m512i)second));
    }
  }
};
#else
template <>
struct Units<BFloat16> : Units<float> {
  static Vec Read(const BFloat16* source) {
    Vec v;
    for (int i = 0; i < kLanes; ++i) {
      uint32_t bits = uint32_t{source[i].bits} << 16;
      float x;
      std::memcpy(&x, &bits, sizeof x);
      v[i] = x;
    }
    return v;
  }
};
#endif

inline float FromFloat(float x, float) { return x; }
inline BFloat16 FromFloat(float x, BFloat16) {  // To the nearest, ties to even.
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>((bits >> 16) | 0x40)};  // NaN stays NaN.
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// C (rows, columns) = A B, or C * decay[row] + A B. A is (rows, depth) units, B (depth, columns) units.
struct Matrices {
  const float* a;
  int a_stride;
  const float* b;
  int b_stride;
  float* c;
  int c_stride;
  const float* decay;  // null: C starts at zero
};

template <typename T, int kRows, int kVecs>
inline void MultiplyTile(const Matrices& m, int depth, int column) {
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j)
      sums[i][j] = m.decay ? Load(m.c + i * m.c_stride + column + j * kLanes) * m.decay[i] : Vec{};
  const float* b = m.b + column;
  for (int d = 0; d < depth; ++d, b += m.b_stride) {
    Vec columns[kVecs];
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) columns[j] = Load(b + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      Vec left = SplatBits(m.a + i * m.a_stride + d);
#pragma GCC unroll 8
      for (int j = 0; j < kVecs; ++j) sums[i][j] = Units<T>::Dot(sums[i][j], left, columns[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) Store(m.c + i * m.c_stride + column + j * kLanes, sums[i][j]);
}

template <typename T, int kRows>
inline void MultiplyRows(const Matrices& m, int depth, int columns) {
  int column = 0;
  for (; column + kColumnVecs * kLanes <= columns; column += kColumnVecs * kLanes)
    MultiplyTile<T, kRows, kColumnVecs>(m, depth, column);
  if (kColumnVecs > 2 && column + 2 * kLanes <= columns) {
    MultiplyTile<T, kRows, 2>(m, depth, column);
    column += 2 * kLanes;
  }
  if (column < columns) MultiplyTile<T, kRows, 1>(m, depth, column);
}

// rows is at most kTileRows, columns a multiple of kLanes.
template <typename T>
void Multiply(const Matrices& m, int rows, int depth, int columns) {
  switch (rows) {
    case 1: return MultiplyRows<T, 1>(m, depth, columns);
    case 2: return MultiplyRows<T, 2>(m, depth, columns);
    case 3: return MultiplyRows<T, 3>(m, depth, columns);
    case 4: return MultiplyRows<T, 4>(m, depth, columns);
    case 5: return MultiplyRows<T, 5>(m, depth, columns);
    case 6: return MultiplyRows<T, 6>(m, depth, columns);
  }
}

}  // namespace sgjax

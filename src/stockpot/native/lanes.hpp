// Sixteen numbers at a time: in inference this file knows what the processor is called; beside it only matrix_unit.hpp and
// tiles.hpp, the matrix unit's, and the few lines of products.hpp and attention.hpp that fetch memory ahead or gather.
//
// Three versions with the same results: AVX-512 with VNNI, AVX2, and plain loops that any compiler turns into what
// its processor has. The rest of the kernels is written once, on top of these names.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "fetching.hpp"

#if !defined(STOCKPOT_PLAIN) && defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define STOCKPOT_AVX2 1
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && \
    defined(__AVX512VNNI__)
#define STOCKPOT_AVX512 1
#endif
#endif

#define STOCKPOT_APART __attribute__((noinline))  // hot loops that are compiled best alone
#if defined(__clang__)
#define STOCKPOT_UNROLL(n)
#else
#define STOCKPOT_PRAGMA(x) _Pragma(#x)
#define STOCKPOT_UNROLL(n) STOCKPOT_PRAGMA(GCC unroll n)
#endif

namespace stockpot {

constexpr int LANES = 16;

#if STOCKPOT_AVX512

constexpr int TILE = 8;                      // rows of a product computed together: what the registers hold

struct Lanes { __m512 v; };                // 16 float
struct Sums { __m512i v; };                // 16 int32
struct Digits { __m512i v; };              // 16 pairs of int16, or 16 fours of uint8
struct Partial { __m512i v; };             // sums of few products of bytes

inline Lanes fill(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store_half(uint16_t* p, Lanes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes smaller(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes size_of(Lanes a) { return {_mm512_abs_ps(a.v)}; }
inline Lanes whole(Lanes a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Lanes power_of_two(Lanes n) {        // 2^n for whole n within the exponents of float
  const __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_castsi512_ps(bits)};
}
inline void store_digits(int16_t* p, Lanes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a.v)));
}
inline Sums fill_sums(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Sums operator+(Sums a, Sums b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Lanes as_float(Sums a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Digits load_digits(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void store_line(uint8_t* p, Digits d) { _mm512_storeu_si512(p, d.v); }
inline Digits low_bits(Digits d, int16_t mask) { return {_mm512_and_si512(d.v, _mm512_set1_epi16(mask))}; }
template <int BITS> inline Digits shifted(Digits d) { return {_mm512_srli_epi16(d.v, BITS)}; }
inline Sums add_products(Sums s, Digits w, const int16_t* pair) {
  int32_t both;
  std::memcpy(&both, pair, 4);
  return {_mm512_dpwssd_epi32(s.v, w.v, _mm512_set1_epi32(both))};
}
// The instruction itself: GCC 12 keeps a copy of every sum, so that many do not fit the registers.
inline Sums add_pairs(Sums s, Digits w, Digits pairs) {
  asm("vpdpwssd %2, %1, %0" : "+v"(s.v) : "v"(w.v), "v"(pairs.v));
  return s;
}
inline Digits fill_pairs(const int16_t* pair) {
  int32_t both;
  std::memcpy(&both, pair, 4);
  return {_mm512_set1_epi32(both)};
}
inline Partial no_partial() { return {_mm512_setzero_si512()}; }
inline Partial add_products(Partial s, Digits w, const int8_t* four) {
  int32_t all;
  std::memcpy(&all, four, 4);
  return {_mm512_dpbusd_epi32(s.v, w.v, _mm512_set1_epi32(all))};
}
inline Sums widened(Partial s) { return {s.v}; }
inline void store_bytes(int8_t* p, Lanes a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

#elif STOCKPOT_AVX2

constexpr int TILE = 3;

struct Lanes { __m256 a, b; };
struct Sums { __m256i a, b; };
struct Digits { __m256i a, b; };           // 16 pairs of int16, or 16 fours of uint8
struct Partial { __m256i a, b; };          // 16 pairs of int16

inline const __m128i* at(const void* p, int part) { return static_cast<const __m128i*>(p) + part; }

inline Lanes fill(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Lanes x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline Lanes load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(at(p, 0))), _mm256_cvtph_ps(_mm_loadu_si128(at(p, 1)))};
}
inline void store_half(uint16_t* p, Lanes x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline Lanes operator+(Lanes x, Lanes y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Lanes operator-(Lanes x, Lanes y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Lanes operator*(Lanes x, Lanes y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Lanes operator/(Lanes x, Lanes y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Lanes fma(Lanes x, Lanes y, Lanes z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Lanes larger(Lanes x, Lanes y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Lanes smaller(Lanes x, Lanes y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Lanes size_of(Lanes x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline Lanes whole(Lanes x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
inline __m256 power_of_two(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Lanes power_of_two(Lanes n) { return {power_of_two(n.a), power_of_two(n.b)}; }
inline void store_digits(int16_t* p, Lanes x) {
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
}
inline Sums fill_sums(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Sums operator+(Sums x, Sums y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline Lanes as_float(Sums x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Digits load_digits(const void* p) {
  const __m256i* from = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
inline void store_line(uint8_t* p, Digits d) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), d.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), d.b);
}
inline Digits low_bits(Digits d, int16_t mask) {
  const __m256i m = _mm256_set1_epi16(mask);
  return {_mm256_and_si256(d.a, m), _mm256_and_si256(d.b, m)};
}
template <int BITS> inline Digits shifted(Digits d) {
  return {_mm256_srli_epi16(d.a, BITS), _mm256_srli_epi16(d.b, BITS)};
}
inline Sums add_pairs(Sums s, Digits w, Digits x) {
  return {_mm256_add_epi32(s.a, _mm256_madd_epi16(w.a, x.a)), _mm256_add_epi32(s.b, _mm256_madd_epi16(w.b, x.b))};
}
inline Digits fill_pairs(const int16_t* pair) {
  int32_t both;
  std::memcpy(&both, pair, 4);
  return {_mm256_set1_epi32(both), _mm256_set1_epi32(both)};
}
inline Sums add_products(Sums s, Digits w, const int16_t* pair) { return add_pairs(s, w, fill_pairs(pair)); }
inline Partial no_partial() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Partial add_products(Partial s, Digits w, const int8_t* four) {
  int32_t all;
  std::memcpy(&all, four, 4);
  const __m256i x = _mm256_set1_epi32(all);
  return {_mm256_add_epi16(s.a, _mm256_maddubs_epi16(w.a, x)), _mm256_add_epi16(s.b, _mm256_maddubs_epi16(w.b, x))};
}
inline Sums widened(Partial s) {
  const __m256i one = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(s.a, one), _mm256_madd_epi16(s.b, one)};
}
inline void store_bytes(int8_t* p, Lanes x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)), 0xD8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

#else

constexpr int TILE = 4;

struct Lanes { float v[LANES]; };
struct Sums { int32_t v[LANES]; };
struct Digits { int16_t v[2 * LANES]; };     // 16 pairs of int16, or 16 fours of uint8
using Partial = Sums;

template <class T, class F> inline T each(F&& f) {
  T out;
  for (int i = 0; i < LANES; ++i) out.v[i] = f(i);
  return out;
}
inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
  float value;
  uint32_t bits = (rest << 13) + ((127 - 15) << 23);
  if (rest >= 0x7c00) bits += (255 - 31 - 112) << 23;
  if (rest < 0x0400) {                       // too small to be normal: the digits count units of 2^-24
    value = float(rest) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint16_t float_to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const float size = std::fabs(x);
  if (size != size) return sign | 0x7e00;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 6.103515625e-5f) return sign | uint16_t(std::nearbyint(size * 16777216.0f));
  bits &= 0x7fffffff;
  bits += 0xfff + ((bits >> 13) & 1);        // round to even
  return sign | uint16_t((bits - ((127 - 15) << 23)) >> 13);
}
inline Lanes fill(float x) { return each<Lanes>([&](int) { return x; }); }
inline Lanes load(const float* p) { return each<Lanes>([&](int i) { return p[i]; }); }
inline void store(float* p, Lanes a) { std::memcpy(p, a.v, sizeof a.v); }
inline Lanes load_half(const uint16_t* p) { return each<Lanes>([&](int i) { return half_to_float(p[i]); }); }
inline void store_half(uint16_t* p, Lanes a) {
  for (int i = 0; i < LANES; ++i) p[i] = float_to_half(a.v[i]);
}
inline Lanes operator+(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] + b.v[i]; }); }
inline Lanes operator-(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] - b.v[i]; }); }
inline Lanes operator*(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] * b.v[i]; }); }
inline Lanes operator/(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] / b.v[i]; }); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return each<Lanes>([&](int i) { return std::fmaf(a.v[i], b.v[i], c.v[i]); });
}
inline Lanes larger(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline Lanes smaller(Lanes a, Lanes b) { return each<Lanes>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline Lanes size_of(Lanes a) { return each<Lanes>([&](int i) { return std::fabs(a.v[i]); }); }
inline Lanes whole(Lanes a) { return each<Lanes>([&](int i) { return std::nearbyint(a.v[i]); }); }
inline Lanes power_of_two(Lanes n) {
  return each<Lanes>([&](int i) { return std::ldexp(1.0f, int(n.v[i])); });
}
inline void store_digits(int16_t* p, Lanes a) {
  for (int i = 0; i < LANES; ++i) p[i] = int16_t(std::nearbyint(a.v[i]));
}
inline Sums fill_sums(int32_t x) { return each<Sums>([&](int) { return x; }); }
inline Sums operator+(Sums a, Sums b) { return each<Sums>([&](int i) { return a.v[i] + b.v[i]; }); }
inline Lanes as_float(Sums a) { return each<Lanes>([&](int i) { return float(a.v[i]); }); }
inline Digits load_digits(const void* p) {
  Digits d;
  std::memcpy(d.v, p, sizeof d.v);
  return d;
}
inline void store_line(uint8_t* p, Digits d) { std::memcpy(p, d.v, sizeof d.v); }
inline Digits low_bits(Digits d, int16_t mask) {
  for (int i = 0; i < 2 * LANES; ++i) d.v[i] &= mask;
  return d;
}
template <int BITS> inline Digits shifted(Digits d) {
  for (int i = 0; i < 2 * LANES; ++i) d.v[i] = int16_t(uint16_t(d.v[i]) >> BITS);
  return d;
}
inline Partial no_partial() { return fill_sums(0); }
inline Partial add_products(Partial s, Digits w, const int8_t* four) {
  uint8_t bytes[4 * LANES];
  std::memcpy(bytes, w.v, sizeof bytes);
  for (int i = 0; i < LANES; ++i)
    for (int k = 0; k < 4; ++k) s.v[i] += bytes[4 * i + k] * four[k];
  return s;
}
inline Sums widened(Partial s) { return s; }
inline void store_bytes(int8_t* p, Lanes a) {
  for (int i = 0; i < LANES; ++i) p[i] = int8_t(std::nearbyint(a.v[i]));
}
inline Sums add_pairs(Sums s, Digits w, Digits x) {
  for (int i = 0; i < LANES; ++i) s.v[i] += w.v[2 * i] * x.v[2 * i] + w.v[2 * i + 1] * x.v[2 * i + 1];
  return s;
}
inline Digits fill_pairs(const int16_t* pair) {
  Digits d;
  for (int i = 0; i < 2 * LANES; ++i) d.v[i] = pair[i % 2];
  return d;
}
inline Sums add_products(Sums s, Digits w, const int16_t* pair) { return add_pairs(s, w, fill_pairs(pair)); }

#endif

// --- sums and maxima over the lanes ---
//
// In every version: halves are added, then quarters, which leaves four numbers; then (0 + 1) + (2 + 3).

#if STOCKPOT_AVX2

#if STOCKPOT_AVX512
inline __m256 lower(Lanes a) { return _mm512_castps512_ps256(a.v); }
inline __m256 upper(Lanes a) { return _mm512_extractf32x8_ps(a.v, 1); }
inline Lanes join(__m256 a, __m256 b) { return {_mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1)}; }
#else
inline __m256 lower(Lanes a) { return a.a; }
inline __m256 upper(Lanes a) { return a.b; }
inline Lanes join(__m256 a, __m256 b) { return {a, b}; }
#endif

inline void store_quarter(float* p, Lanes a) {
  const __m256 half = _mm256_add_ps(lower(a), upper(a));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
inline __m256 sum_quarters_of_8(const float* p) {
  const __m256 a = _mm256_hadd_ps(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
  const __m256 b = _mm256_hadd_ps(_mm256_loadu_ps(p + 16), _mm256_loadu_ps(p + 24));
  return _mm256_permutevar8x32_ps(_mm256_hadd_ps(a, b), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
inline Lanes sum_quarters(const float* p) { return join(sum_quarters_of_8(p), sum_quarters_of_8(p + 32)); }

#if STOCKPOT_AVX512

// The sums of eight vectors.
inline __m256 sums_of_8(const Lanes* a) {
  __m512 halves[4], quarters[2];
  for (int i = 0; i < 4; ++i)
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i].v, a[2 * i + 1].v, 0x44),
                              _mm512_shuffle_f32x4(a[2 * i].v, a[2 * i + 1].v, 0xEE));
  for (int i = 0; i < 2; ++i)
    quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4(halves[2 * i], halves[2 * i + 1], 0x88),
                                _mm512_shuffle_f32x4(halves[2 * i], halves[2 * i + 1], 0xDD));
  const __m512 pairs = _mm512_add_ps(_mm512_shuffle_ps(quarters[0], quarters[1], 0x88),
                                     _mm512_shuffle_ps(quarters[0], quarters[1], 0xDD));
  const __m512 all = _mm512_add_ps(pairs, _mm512_movehdup_ps(pairs));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_castps512_ps256(_mm512_permutexvar_ps(order, all));
}

#endif

inline float largest(Lanes a) {
  const __m256 half = _mm256_max_ps(lower(a), upper(a));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#else

inline void store_quarter(float* p, Lanes a) {
  for (int i = 0; i < 4; ++i) p[i] = (a.v[i] + a.v[i + 8]) + (a.v[i + 4] + a.v[i + 12]);
}
inline Lanes sum_quarters(const float* p) {
  return each<Lanes>([&](int i) { return (p[4 * i] + p[4 * i + 1]) + (p[4 * i + 2] + p[4 * i + 3]); });
}

inline float largest(Lanes a) {
  float most = a.v[0];
  for (const float x : a.v) most = most > x ? most : x;
  return most;
}

#endif

#if STOCKPOT_AVX512

inline bool any_above(Lanes a, Lanes b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0; }

// 16 rows of 16 numbers -> what was a row stands in a column. Pairs, fours, eights and halves change places in turn.
inline void turn(const float* from, int64_t step, float* to, int64_t to_step) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * step);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; ++i) {
    const __m512d x = _mm512_castps_pd(b[i / 4 * 4 + i % 4 / 2]), y = _mm512_castps_pd(b[i / 4 * 4 + i % 4 / 2 + 2]);
    a[i] = _mm512_castpd_ps(i % 2 ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
  }
  for (int i = 0; i < 16; ++i) {
    const __m512 x = a[i / 8 * 8 + i % 4], y = a[i / 8 * 8 + i % 4 + 4];
    b[i] = i % 8 < 4 ? _mm512_shuffle_f32x4(x, y, 0x88) : _mm512_shuffle_f32x4(x, y, 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_ps(to + i * to_step, _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88));
    _mm512_storeu_ps(to + (i + 8) * to_step, _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd));
  }
}

#else

inline bool any_above(Lanes a, Lanes b) {
  float x[LANES], y[LANES];
  store(x, a);
  store(y, b);
  bool found = false;
  for (int i = 0; i < LANES; ++i) found |= x[i] > y[i];
  return found;
}
inline void turn(const float* from, int64_t step, float* to, int64_t to_step) {
  for (int i = 0; i < LANES; ++i)
    for (int j = 0; j < LANES; ++j) to[j * to_step + i] = from[i * step + j];
}

#endif

inline float sum(Lanes a) {
  float v[4];
  store_quarter(v, a);
  return (v[0] + v[1]) + (v[2] + v[3]);
}

// e^x, to about two units in the last place; 0 below -87.
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, as ln 2 / 2 keeps the rest below 2^-24.
inline Lanes exponential(Lanes x) {
  const Lanes least = fill(-87.0f);
  const Lanes held = smaller(larger(x, least), fill(88.0f));
  const Lanes n = whole(held * fill(1.44269504f));
  const Lanes r = fma(n, fill(1.90465421e-9f), fma(n, fill(-0.693147182f), held));  // ln 2 in two parts
  Lanes p = fill(1.0f / 5040);
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, fill(c));
  return p * power_of_two(n);
}

}  // namespace stockpot

// Matrix products in halves, for processors whose vectors multiply halves twice as fast as floats (AVX512-FP16) and that
// have nothing faster.
//
// Both sides are scaled by powers of two so that their largest number is below LARGEST, rounded to halves (11 bits), and
// multiplied; CHUNK products are added up in halves, the sums of chunks in floats. So no sum can overflow, numbers down to
// a 250,000th of the largest keep all bits, and the error is half of that of products in bfloat16 (8 bits), whose sums are
// floats throughout. Results do not depend on the threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__AVX512FP16__)
#include <immintrin.h>
#endif

namespace stockpot {

// One side of a product: element (i, k), k being summed over, is at[i * row + k], or at[k * row + i] if turned.
struct Side {
  const float* at;
  int64_t row, turned;
  float largest;                             // of its numbers' sizes
};

// The size of the largest number; what is not finite shows.
inline float largest(const float* x, int64_t count, int threads) {
  constexpr int64_t PARTS = 64;
  float tops[PARTS] = {};
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t part = 0; part < PARTS; ++part) {
    uint32_t top = 0;                        // floats without their sign are ordered as whole numbers, inf and NaN above all
    const uint32_t* bits = reinterpret_cast<const uint32_t*>(x);
#pragma omp simd reduction(max : top)
    for (int64_t i = count * part / PARTS; i < count * (part + 1) / PARTS; ++i)
      top = std::max(top, bits[i] & 0x7fffffffu);
    std::memcpy(&tops[part], &top, 4);
  }
  float top = 0.0f;
  for (float one : tops) top = one > top || one != one ? one : top;
  return top;
}

#if defined(__AVX512FP16__)

namespace halves {

using Half = _Float16;
constexpr int64_t ROWS = 8, WIDE = 64, HALF = 32;  // a tile of the result; numbers of a vector
constexpr int64_t CHUNK = 64, BLOCK = 128;   // products added up in halves; most rows of a block
constexpr float LARGEST = 16.0f;             // CHUNK * LARGEST * LARGEST is a half, too

inline float scale_of(float top) {
  int exponent = 0;
  if (top > 0.0f) std::frexp(top, &exponent);
  return top > 0.0f ? std::ldexp(1.0f, std::clamp(4 - exponent, -120, 120)) : 1.0f;
}

template <class T> T* room(int64_t count) {
  static thread_local std::vector<T> own;
  if (static_cast<int64_t>(own.size()) < count) own.resize(static_cast<size_t>(count));
  return own.data();
}

inline __mmask16 upto(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << std::max<int64_t>(count, 0)) - 1u); }

// Sixteen neighbours, of which `count` exist, as halves.
inline __m256i narrow(const float* at, int64_t count, __m512 scale) {
  return reinterpret_cast<__m256i>(_mm512_cvtxps_ph(_mm512_mul_ps(scale, _mm512_maskz_loadu_ps(upto(count), at))));
}

// Eight lines, of which `lines` exist, sixteen neighbours of each, of which `count` exist: turned[j] holds the eight of place j,
// then those of place 8 + j.
inline void turn(const float* at, int64_t row, int64_t lines, int64_t count, __m512 scale, __m256i* turned) {
  __m256i x[8], y[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) x[i] = i < lines ? narrow(at + i * row, count, scale) : _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {              // neighbours in twos, then fours, then eights
    y[2 * i] = _mm256_unpacklo_epi16(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm256_unpackhi_epi16(x[2 * i], x[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      x[4 * i + 2 * j] = _mm256_unpacklo_epi32(y[4 * i + j], y[4 * i + j + 2]);
      x[4 * i + 2 * j + 1] = _mm256_unpackhi_epi32(y[4 * i + j], y[4 * i + j + 2]);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    turned[2 * i] = _mm256_unpacklo_epi64(x[i], x[i + 4]);
    turned[2 * i + 1] = _mm256_unpackhi_epi64(x[i], x[i + 4]);
  }
}

// Eight halves as pairs of the same.
inline void put_pairs(uint32_t* out, __m128i eight) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi16(eight, eight));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 4), _mm_unpackhi_epi16(eight, eight));
}

// Rows from `first` in groups of ROWS, `group` numbers apart, each as pairs of the same half, depth by depth; rows that do
// not exist are 0.
inline void pack_left(const Side& a, int64_t first, int64_t rows, int64_t depth, float by, uint32_t* out, int64_t group) {
  const __m512 scale = _mm512_set1_ps(by);
  if (a.turned) {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t i = 0; i < rows; i += 2 * ROWS) {
        const __m256i line = narrow(a.at + k * a.row + first + i, rows - i, scale);
        put_pairs(out + i / ROWS * group + k * ROWS, _mm256_castsi256_si128(line));
        if (i + ROWS < rows) put_pairs(out + (i / ROWS + 1) * group + k * ROWS, _mm256_extracti128_si256(line, 1));
      }
    return;
  }
  for (int64_t i = 0; i < rows; i += ROWS)
    for (int64_t k = 0; k < depth; k += 16) {
      __m256i turned[8];
      turn(a.at + (first + i) * a.row + k, a.row, rows - i, depth - k, scale, turned);
      uint32_t* to = out + i / ROWS * group + k * ROWS;
      for (int64_t j = 0; j < std::min<int64_t>(8, depth - k); ++j) put_pairs(to + j * ROWS, _mm256_castsi256_si128(turned[j]));
      for (int64_t j = 8; j < std::min<int64_t>(16, depth - k); ++j)
        put_pairs(to + j * ROWS, _mm256_extracti128_si256(turned[j - 8], 1));
    }
}

// WIDE columns from `first`, of which `columns` exist, depth by depth; the others are 0.
inline void pack_right(const Side& b, int64_t first, int64_t columns, int64_t depth, float by, Half* out) {
  const __m512 scale = _mm512_set1_ps(by);
  if (b.turned) {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < WIDE; j += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k * WIDE + j),
                            narrow(b.at + k * b.row + first + std::min(j, columns), columns - j, scale));
    return;
  }
  for (int64_t j = 0; j < WIDE; j += 8)
    for (int64_t k = 0; k < depth; k += 16) {
      __m256i turned[8];
      turn(b.at + (first + std::min(j, columns)) * b.row + k, b.row, columns - j, depth - k, scale, turned);
      __m128i* to = reinterpret_cast<__m128i*>(out + k * WIDE + j);
      for (int64_t i = 0; i < std::min<int64_t>(8, depth - k); ++i) _mm_storeu_si128(to + i * 8, _mm256_castsi256_si128(turned[i]));
      for (int64_t i = 8; i < std::min<int64_t>(16, depth - k); ++i)
        _mm_storeu_si128(to + i * 8, _mm256_extracti128_si256(turned[i - 8], 1));
    }
}

inline __m512 widen(__m512i halves, int upper) {
  return _mm512_cvtxph_ps(reinterpret_cast<__m256h>(upper ? _mm512_extracti64x4_epi64(halves, 1) : _mm512_castsi512_si256(halves)));
}

// A tile of the result, (ROWS, WIDE) from packed rows and columns.
inline void tile(const uint32_t* a, const Half* b, int64_t depth, float by, float* out, int64_t out_row) {
  alignas(64) float sums[ROWS * WIDE];
  for (int64_t start = 0; start < depth; start += CHUNK) {
    const int64_t stop = std::min(depth, start + CHUNK);
    __m512h some[ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) some[i][0] = some[i][1] = _mm512_setzero_ph();
    for (int64_t k = start; k < stop; ++k) {
      const __m512h left = _mm512_loadu_ph(b + k * WIDE), right = _mm512_loadu_ph(b + k * WIDE + HALF);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; ++i) {
        const __m512h row = reinterpret_cast<__m512h>(_mm512_set1_epi32(static_cast<int>(a[k * ROWS + i])));
        some[i][0] = _mm512_fmadd_ph(row, left, some[i][0]);
        some[i][1] = _mm512_fmadd_ph(row, right, some[i][1]);
      }
    }
    const __m512 factor = _mm512_set1_ps(by);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        __m512 sum = widen(reinterpret_cast<__m512i>(some[i][j / 2]), j % 2);
        float* own = sums + i * WIDE + j * 16;
        if (start) sum = _mm512_add_ps(sum, _mm512_load_ps(own));
        if (stop < depth) _mm512_store_ps(own, sum);
        else _mm512_storeu_ps(out + i * out_row + j * 16, _mm512_mul_ps(sum, factor));
      }
  }
}

// As `tile`, where the result has fewer rows or columns.
inline void edge(const uint32_t* a, const Half* b, int64_t depth, float by, float* out, int64_t out_row, int64_t rows,
                 int64_t columns) {
  alignas(64) float whole[ROWS * WIDE];
  tile(a, b, depth, by, whole, WIDE);
  for (int64_t i = 0; i < rows; ++i) std::copy(whole + i * WIDE, whole + i * WIDE + columns, out + i * out_row);
}

}  // namespace halves

// out (high, wide) = the product of two sides over `depth`; false: they hold what is not finite, and out was not written.
inline bool multiply_halves(const Side& a, const Side& b, int64_t high, int64_t wide, int64_t depth, float* out, int threads) {
  using namespace halves;
  if (!std::isfinite(a.largest) || !std::isfinite(b.largest)) return false;
  const float a_scale = scale_of(a.largest), b_scale = scale_of(b.largest), by = 1.0f / a_scale / b_scale;
  const int64_t panels = (wide + WIDE - 1) / WIDE;
  const int64_t shares = threads * ((high + BLOCK * threads - 1) / (BLOCK * threads));  // as many for each thread
  const int64_t size = (high + shares * ROWS - 1) / (shares * ROWS) * ROWS, blocks = (high + size - 1) / size;
  const int64_t group = (depth + 4) * ROWS;  // no power of two, or all groups would meet in the same lines of the cache
  Half* right = room<Half>(panels * depth * WIDE);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t panel = 0; panel < panels; ++panel)
    pack_right(b, panel * WIDE, std::min(WIDE, wide - panel * WIDE), depth, b_scale, right + panel * depth * WIDE);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t block = 0; block < blocks; ++block) {
    uint32_t* left = room<uint32_t>(BLOCK / ROWS * group);
    const int64_t first = block * size, last = std::min(high, first + size);
    pack_left(a, first, last - first, depth, a_scale, left, group);
    for (int64_t panel = 0; panel < panels; ++panel)
      for (int64_t i = first; i < last; i += ROWS) {
        const int64_t rows = std::min(ROWS, last - i), columns = std::min(WIDE, wide - panel * WIDE);
        const uint32_t* own = left + (i - first) / ROWS * group;
        const Half* other = right + panel * depth * WIDE;
        float* to = out + i * wide + panel * WIDE;
        if (rows == ROWS && columns == WIDE) tile(own, other, depth, by, to, wide);
        else edge(own, other, depth, by, to, wide, rows, columns);
      }
  }
  return true;
}

constexpr bool HAS_HALVES = true;
#else
inline bool multiply_halves(const Side&, const Side&, int64_t, int64_t, int64_t, float*, int) { return false; }
constexpr bool HAS_HALVES = false;
#endif

}  // namespace stockpot

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) on many counters at once. The words match
// kernels/latents/reference.py bit for bit on every instruction set.
#pragma once

#include <cstdint>

#include "common.h"

#if defined(__x86_64__) && defined(__GNUC__)
// GCC 12 mistakes the undefined vectors in its own header for uninitialised ones.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace ptgm::philox {

constexpr int kRounds = 10;
constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kKeyStep0 = 0x9E3779B9u, kKeyStep1 = 0xBB67AE85u;

// Counters per call: enough independent chains to hide the multiplications' latency.
constexpr int kCounters = 32;

// The counters (c0[i], c1[i], c2[i], c3), all with one key.
struct Batch {
  alignas(64) uint32_t c0[kCounters], c1[kCounters], c2[kCounters];
  uint32_t c3, key0, key1;
};

// words[4 i .. 4 i + 3] belong to counter i.
using Function = void (*)(const Batch& in, uint32_t* words);

inline void words_portable(const Batch& in, uint32_t* words) {
  for (int i = 0; i < kCounters; ++i) {
    uint32_t c0 = in.c0[i], c1 = in.c1[i], c2 = in.c2[i], c3 = in.c3, key0 = in.key0, key1 = in.key1;
    for (int round = 0; round < kRounds; ++round) {
      const uint64_t p0 = static_cast<uint64_t>(kMultiplier0) * c0, p1 = static_cast<uint64_t>(kMultiplier1) * c2;
      c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
      c1 = static_cast<uint32_t>(p1);
      c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
      c3 = static_cast<uint32_t>(p0);
      key0 += kKeyStep0;
      key1 += kKeyStep1;
    }
    words[4 * i] = c0;
    words[4 * i + 1] = c1;
    words[4 * i + 2] = c2;
    words[4 * i + 3] = c3;
  }
}

#if defined(__x86_64__) && defined(__GNUC__)

// A word lives in the low half of a 64-bit lane: the product of two words is one instruction that reads low halves
// only, so the high halves may hold anything until the end.

TARGET_AVX512 inline void words_avx512(const Batch& in, uint32_t* words) {
  constexpr int kVectors = kCounters / 8;
  const __m512i m0 = _mm512_set1_epi64(kMultiplier0), m1 = _mm512_set1_epi64(kMultiplier1);
  const __m512i low = _mm512_set1_epi64(0xFFFFFFFFll);
  const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i last = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  __m512i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    c0[v] = _mm512_cvtepu32_epi64(_mm256_load_si256(reinterpret_cast<const __m256i*>(in.c0 + 8 * v)));
    c1[v] = _mm512_cvtepu32_epi64(_mm256_load_si256(reinterpret_cast<const __m256i*>(in.c1 + 8 * v)));
    c2[v] = _mm512_cvtepu32_epi64(_mm256_load_si256(reinterpret_cast<const __m256i*>(in.c2 + 8 * v)));
    c3[v] = _mm512_set1_epi64(in.c3);
  }
  uint32_t key0 = in.key0, key1 = in.key1;
  for (int round = 0; round < kRounds; ++round) {
    const __m512i k0 = _mm512_set1_epi64(key0), k1 = _mm512_set1_epi64(key1);
    for (int v = 0; v < kVectors; ++v) {
      const __m512i p0 = _mm512_mul_epu32(c0[v], m0), p1 = _mm512_mul_epu32(c2[v], m1);
      // 0x96 is a three-way XOR.
      c0[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[v], k0, 0x96);
      c2[v] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3[v], k1, 0x96);
      c1[v] = p1;
      c3[v] = p0;
    }
    key0 += kKeyStep0;
    key1 += kKeyStep1;
  }
  for (int v = 0; v < kVectors; ++v) {
    const __m512i c01 = _mm512_or_si512(_mm512_and_si512(c0[v], low), _mm512_slli_epi64(c1[v], 32));
    const __m512i c23 = _mm512_or_si512(_mm512_and_si512(c2[v], low), _mm512_slli_epi64(c3[v], 32));
    _mm512_storeu_si512(words + 32 * v, _mm512_permutex2var_epi64(c01, first, c23));
    _mm512_storeu_si512(words + 32 * v + 16, _mm512_permutex2var_epi64(c01, last, c23));
  }
}

// Counters begin .. begin + 15.
TARGET_AVX2 inline void half_words_avx2(const Batch& in, int begin, uint32_t* words) {
  constexpr int kVectors = 4;
  const __m256i m0 = _mm256_set1_epi64x(kMultiplier0), m1 = _mm256_set1_epi64x(kMultiplier1);
  __m256i c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int i = begin + 4 * v;
    c0[v] = _mm256_cvtepu32_epi64(_mm_load_si128(reinterpret_cast<const __m128i*>(in.c0 + i)));
    c1[v] = _mm256_cvtepu32_epi64(_mm_load_si128(reinterpret_cast<const __m128i*>(in.c1 + i)));
    c2[v] = _mm256_cvtepu32_epi64(_mm_load_si128(reinterpret_cast<const __m128i*>(in.c2 + i)));
    c3[v] = _mm256_set1_epi64x(in.c3);
  }
  uint32_t key0 = in.key0, key1 = in.key1;
  for (int round = 0; round < kRounds; ++round) {
    const __m256i k0 = _mm256_set1_epi64x(key0), k1 = _mm256_set1_epi64x(key1);
    for (int v = 0; v < kVectors; ++v) {
      const __m256i p0 = _mm256_mul_epu32(c0[v], m0), p1 = _mm256_mul_epu32(c2[v], m1);
      c0[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1[v]), k0);
      c2[v] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3[v]), k1);
      c1[v] = p1;
      c3[v] = p0;
    }
    key0 += kKeyStep0;
    key1 += kKeyStep1;
  }
  for (int v = 0; v < kVectors; ++v) {
    const __m256i c01 = _mm256_blend_epi32(c0[v], _mm256_slli_epi64(c1[v], 32), 0xAA);
    const __m256i c23 = _mm256_blend_epi32(c2[v], _mm256_slli_epi64(c3[v], 32), 0xAA);
    const __m256i even = _mm256_unpacklo_epi64(c01, c23), odd = _mm256_unpackhi_epi64(c01, c23);
    __m256i* out = reinterpret_cast<__m256i*>(words + 4 * begin + 16 * v);
    _mm256_storeu_si256(out, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(out + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
}

TARGET_AVX2 inline void words_avx2(const Batch& in, uint32_t* words) {
  half_words_avx2(in, 0, words);
  half_words_avx2(in, kCounters / 2, words);
}

#endif

}  // namespace ptgm::philox

// Non-temporal copies: they bypass the caches, leave their contents in place, and do not read cache lines that they
// overwrite completely. A piece whose address or length is not a multiple of the store width is copied normally.
#pragma once

#include "common.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace ptgm {

// Copies bytes; null means a normal copy.
using Copy = void (*)(char* to, const char* from, int64_t bytes);

INLINE bool fits(const char* to, int64_t bytes, int64_t width) {
  return ((reinterpret_cast<uintptr_t>(to) | static_cast<uintptr_t>(bytes)) & static_cast<uintptr_t>(width - 1)) == 0;
}

#if defined(__x86_64__) && defined(__GNUC__)

inline void stream_portable(char* to, const char* from, int64_t bytes) {
  if (!fits(to, bytes, 16)) return void(std::memcpy(to, from, bytes));
  for (int64_t k = 0; k < bytes; k += 16) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k));
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + k), bits);
  }
}
TARGET_AVX2 inline void stream_avx2(char* to, const char* from, int64_t bytes) {
  if (!fits(to, bytes, 32)) return stream_portable(to, from, bytes);
  for (int64_t k = 0; k < bytes; k += 32) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + k));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + k), bits);
  }
}
TARGET_AVX512 inline void stream_avx512(char* to, const char* from, int64_t bytes) {
  if (!fits(to, bytes, 64)) return stream_avx2(to, from, bytes);
  for (int64_t k = 0; k < bytes; k += 64) {
    const __m512i bits = _mm512_loadu_si512(from + k);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + k), bits);
  }
}

inline Copy streaming_copy() {
  return has_avx512() ? stream_avx512 : has_avx2() ? stream_avx2 : stream_portable;
}

// Call before another thread reads what this one streamed.
inline void end_stream() { _mm_sfence(); }

#else

inline Copy streaming_copy() { return nullptr; }
inline void end_stream() {}

#endif

}  // namespace ptgm

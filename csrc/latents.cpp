// Counter-based random numbers, addressed by (seed, row, element): uniform, (truncated) normal, class labels. Definition,
// constants and the order of operations are those of kernels/latents/reference.py, which the results match bit for bit.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common.h"
#include "philox.h"

// Each operation is rounded separately, as in the reference: no fused multiply-adds in this file.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

namespace ptgm::latents {
namespace {

// Must match the constants in kernels/latents/cpu_impl.py.
enum class Kind : int { kUniform, kNormal, kTruncated };

constexpr float kCentreP[] = {2.1322834f, 30.930613f, 112.216805f, 94.98511f, 8.783196f};
constexpr float kCentreQ[] = {1.0f, 16.54876f, 74.1179f, 90.929695f, 20.18481f};
constexpr float kTailP[] = {2.062461f, 3.1591282f, 1.5455067f, 0.22729474f};
constexpr float kTailQ[] = {1.0f, 0.81302637f, 0.1603977f};
constexpr float kLogP[] = {0.99999994f, -0.50000364f,  0.3333506f,  -0.24969909f,
                           0.19900171f, -0.17250851f, 0.1622254f, -0.10106774f};
constexpr float kCentreLimit = 0.959f, kCentreShift = 0.92f, kTailShift = 1.8f;
constexpr float kLog2 = 0.6931471805599453f, kTruncationMass = 0.9544997361036416f, kTruncationBound = 2.0f;
constexpr int32_t kSqrtHalfBits = 0x3F3504F3;

template <int N>
INLINE float polynomial(const float (&coefficients)[N], float x) {
  float value = coefficients[N - 1];
  for (int i = N - 2; i >= 0; --i) value = value * x + coefficients[i];
  return value;
}

INLINE float log_of(float x) {
  const int32_t bits = static_cast<int32_t>(bits_of(x)), exponent = (bits - kSqrtHalfBits) >> 23;
  const float f = float_of(static_cast<uint32_t>(bits - exponent * (1 << 23))) - 1.0f;
  return static_cast<float>(exponent) * kLog2 + f * polynomial(kLogP, f);
}

template <Kind K>
INLINE float value_of(uint32_t word, float truncation) {
  if (K == Kind::kUniform) return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f;
  const int32_t k = static_cast<int32_t>(word >> 1);
  float x = (static_cast<float>(k ^ 0x7FFFFFFF) + 0.5f) * 0x1p-31f;
  if (K == Kind::kTruncated) x = x * kTruncationMass;
  const float r = kCentreShift - x * x;
  float numerator = x * polynomial(kCentreP, r), denominator = polynomial(kCentreQ, r), z;
  if (K == Kind::kTruncated) {
    z = numerator / denominator;
    z = (z < kTruncationBound ? z : kTruncationBound) * truncation;
  } else {
    const float q = (static_cast<float>(k) + 0.5f) * 0x1p-31f, negative_log = -log_of(q);
    const float t = __builtin_sqrtf(negative_log > 0.0f ? negative_log : 0.0f) - kTailShift;
    const bool centre = x <= kCentreLimit;
    numerator = centre ? numerator : polynomial(kTailP, t);
    denominator = centre ? denominator : polynomial(kTailQ, t);
    z = numerator / denominator;
  }
  return float_of(bits_of(z) ^ ((word & 1u) << 31));
}

struct Address {
  uint64_t seed, start;
  uint32_t stream;
};

// Fills batches with the counters of consecutive (row, block) pairs.
struct Cursor {
  uint64_t row;
  uint32_t block, blocks_per_row;

  INLINE void fill(philox::Batch& batch) {
    for (int i = 0; i < philox::kCounters; ++i) {
      batch.c0[i] = static_cast<uint32_t>(row);
      batch.c1[i] = static_cast<uint32_t>(row >> 32);
      batch.c2[i] = block;
      if (++block == blocks_per_row) {
        block = 0;
        ++row;
      }
    }
  }
};

INLINE philox::Batch batch_of(const Address& address) {
  philox::Batch batch;
  batch.c3 = address.stream;
  batch.key0 = static_cast<uint32_t>(address.seed);
  batch.key1 = static_cast<uint32_t>(address.seed >> 32);
  return batch;
}

constexpr int kWords = 4 * philox::kCounters;

// Blocks first .. last - 1 of the output's num * blocks_per_row blocks of four elements; a row's last block may be partial.
template <Kind K, philox::Function kPhilox, class T>
INLINE void values(const Address& address, int64_t dim, int64_t first, int64_t last, float truncation, T* out) {
  const int64_t blocks_per_row = (dim + 3) / 4;
  Cursor cursor{address.start + static_cast<uint64_t>(first / blocks_per_row),
                static_cast<uint32_t>(first % blocks_per_row), static_cast<uint32_t>(blocks_per_row)};
  philox::Batch batch = batch_of(address);
  alignas(64) uint32_t words[kWords];
  alignas(64) float line[kWords];
  for (int64_t begin = first; begin < last; begin += philox::kCounters) {
    cursor.fill(batch);
    kPhilox(batch, words);
    // Always a whole batch, so that the loop has no remainder; what lies beyond `last` is not copied.
    const int64_t blocks = std::min<int64_t>(philox::kCounters, last - begin);
    for (int i = 0; i < kWords; ++i) line[i] = value_of<K>(words[i], truncation);
    if (dim % 4 == 0) {
      convert_row(out + 4 * begin, line, 4 * blocks);
      continue;
    }
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t row = (begin + i) / blocks_per_row, column = 4 * ((begin + i) % blocks_per_row);
      convert_row(out + row * dim + column, line + 4 * i, std::min<int64_t>(4, dim - column));
    }
  }
}

template <philox::Function kPhilox>
INLINE void labels(const Address& address, uint64_t num_classes, int64_t first, int64_t last, int64_t* out) {
  Cursor cursor{address.start + static_cast<uint64_t>(first), 0, 1};
  philox::Batch batch = batch_of(address);
  uint32_t words[kWords];
  for (int64_t begin = first; begin < last; begin += philox::kCounters) {
    cursor.fill(batch);
    kPhilox(batch, words);
    const int64_t num = std::min<int64_t>(philox::kCounters, last - begin);
    for (int64_t i = 0; i < num; ++i) {
      const uint64_t high = words[4 * i], low = words[4 * i + 1];
      out[begin + i] = static_cast<int64_t>((high * num_classes + ((low * num_classes) >> 32)) >> 32);
    }
  }
}

#if defined(__x86_64__) && defined(__GNUC__)
template <Kind K, class T>
TARGET_AVX512 void values_avx512(const Address& a, int64_t dim, int64_t first, int64_t last, float t, T* out) {
  values<K, philox::words_avx512>(a, dim, first, last, t, out);
}
template <Kind K, class T>
TARGET_AVX2 void values_avx2(const Address& a, int64_t dim, int64_t first, int64_t last, float t, T* out) {
  values<K, philox::words_avx2>(a, dim, first, last, t, out);
}
#endif
template <Kind K, class T>
void values_portable(const Address& a, int64_t dim, int64_t first, int64_t last, float t, T* out) {
  values<K, philox::words_portable>(a, dim, first, last, t, out);
}

template <Kind K, class T>
auto choose_values() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (has_avx512()) return values_avx512<K, T>;
  if (has_avx2()) return values_avx2<K, T>;
#endif
  return values_portable<K, T>;
}

// Runs f(first, last) in parallel on parts that consist of whole batches.
template <class F>
void in_parts(int64_t blocks, int threads, const F& f) {
  const int64_t batches = (blocks + philox::kCounters - 1) / philox::kCounters;
  constexpr int64_t kNanosecondsABatch = 150;
  const int parts = threads_for(threads, batches, kNanosecondsABatch);
  if (parts == 1) return f(0, blocks);
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int part = 0; part < parts; ++part) {
    const int64_t first = batches * part / parts * philox::kCounters;
    f(first, std::min(blocks, batches * (part + 1) / parts * philox::kCounters));
  }
}

template <Kind K, class T>
void all_values(const Address& address, int64_t num, int64_t dim, float truncation, T* out, int threads) {
  if (num == 0 || dim == 0) return;
  const auto part = choose_values<K, T>();
  in_parts(num * ((dim + 3) / 4), threads,
           [&](int64_t first, int64_t last) { part(address, dim, first, last, truncation, out); });
}

// out [num, dim]; rows start .. start + num - 1.
void random_values(int kind, int dtype, uintptr_t out, int64_t num, int64_t dim, uint64_t seed, uint64_t start,
                   uint32_t stream, float truncation, int threads) {
  const pybind11::gil_scoped_release release;
  const Address address{seed, start, stream};
  with_float_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    switch (static_cast<Kind>(kind)) {
      case Kind::kUniform:
        return all_values<Kind::kUniform>(address, num, dim, truncation, pointer<T>(out), threads);
      case Kind::kNormal:
        return all_values<Kind::kNormal>(address, num, dim, truncation, pointer<T>(out), threads);
      case Kind::kTruncated:
        return all_values<Kind::kTruncated>(address, num, dim, truncation, pointer<T>(out), threads);
    }
  });
}

void class_labels(uintptr_t out, int64_t num, uint64_t num_classes, uint64_t seed, uint64_t start, uint32_t stream,
                  int threads) {
  const pybind11::gil_scoped_release release;
  const Address address{seed, start, stream};
  in_parts(num, threads, [&](int64_t first, int64_t last) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (has_avx512()) return labels<philox::words_avx512>(address, num_classes, first, last, pointer<int64_t>(out));
    if (has_avx2()) return labels<philox::words_avx2>(address, num_classes, first, last, pointer<int64_t>(out));
#endif
    labels<philox::words_portable>(address, num_classes, first, last, pointer<int64_t>(out));
  });
}

}  // namespace
}  // namespace ptgm::latents

namespace ptgm {

PTGM_BIND(module) {
  module.def("latents", &latents::random_values);
  module.def("class_labels", &latents::class_labels);
}

}  // namespace ptgm

// softmax(logits / temperature) @ embedding, the probabilities made in parts that stay in the first-level cache.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "common.h"

namespace ptgm::class_mix {
namespace {

// Wide vectors pass between functions that are always inlined: no call has their ABI.
#pragma GCC diagnostic ignored "-Wpsabi"

constexpr float kLowest = -std::numeric_limits<float>::infinity();
// Classes whose weights are in the cache at a time, and terms of one sum: a sum of such sums loses fewer bits than one
// long one. A multiple of every vector.
constexpr int kPart = 128;
constexpr int kMaxTile = 8;

template <class T>
struct Problem {
  const T* logits;
  const float* embedding;
  float* out;
  int64_t row_stride, num_classes, dim;
  float inverse_temperature;
  int64_t top_k;
};

// The Lanes-wide arithmetic of one instruction set, and the tile of rows x 2 vectors that its registers hold.
template <int Lanes, int Tile>
struct Shape {
  typedef float Vector __attribute__((vector_size(4 * Lanes)));
  static constexpr int kLanes = Lanes, kTile = Tile, kColumns = 2 * Lanes;
};

template <class V>
INLINE V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class V>
INLINE void store(float* p, V v) {
  std::memcpy(p, &v, sizeof(v));
}

// line[0 .. n) as floats, then -inf up to a multiple of 16.
template <class T>
INLINE int read_line(const T* logits, int n, float* line) {
  for (int k = 0; k < n; ++k) line[k] = to_float(logits[k]);
  const int padded = (n + 15) / 16 * 16;
  for (int k = n; k < padded; ++k) line[k] = kLowest;
  return padded;
}

template <class S, class T>
INLINE float row_max(const T* logits, int64_t num_classes) {
  using V = typename S::Vector;
  alignas(64) float line[kPart];
  V best = V{} + kLowest;
  for (int64_t k0 = 0; k0 < num_classes; k0 += kPart) {
    const int padded = read_line(logits + k0, static_cast<int>(std::min<int64_t>(kPart, num_classes - k0)), line);
    for (int k = 0; k < padded; k += S::kLanes) {
      const V v = load<V>(line + k);
      best = v > best ? v : best;
    }
  }
  float most = best[0];
  for (int i = 1; i < S::kLanes; ++i) most = std::max(most, best[i]);
  return most;
}

// Integers in the order of floats; a NaN with a clear sign lies above infinity.
INLINE int32_t key_of(float value) {
  const int32_t bits = static_cast<int32_t>(bits_of(value));
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

INLINE int64_t count_from(const int32_t* keys, int64_t num, int32_t least) {
  int32_t count = 0;
  for (int64_t k = 0; k < num; ++k) count += keys[k] >= least;
  return count;
}

// The k-th largest of a row, by bisection on the keys: every step is one pass that the compiler vectorizes.
template <class T>
INLINE float kth_largest(const T* logits, int64_t num, int64_t k, int32_t* keys) {
  int32_t lowest = std::numeric_limits<int32_t>::max(), highest = std::numeric_limits<int32_t>::min();
  for (int64_t i = 0; i < num; ++i) {
    keys[i] = key_of(to_float(logits[i]));
    lowest = std::min(lowest, keys[i]);
    highest = std::max(highest, keys[i]);
  }
  // At least k keys are >= low, fewer than k are >= high.
  int64_t low = lowest, high = static_cast<int64_t>(highest) + 1;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2, count = count_from(keys, num, static_cast<int32_t>(middle));
    (count >= k ? low : high) = middle;
    if (count != k) continue;
    // The k largest are apart from the rest: the answer is the least of them.
    int32_t least = highest;
    for (int64_t i = 0; i < num; ++i) least = std::min(least, keys[i] >= middle ? keys[i] : highest);
    low = least;
    break;
  }
  const int32_t key = static_cast<int32_t>(low);
  return float_of(static_cast<uint32_t>(key ^ ((key >> 31) & 0x7FFFFFFF)));
}

// weights[k] = exp((logit - most) / temperature), 0 below `least`; returns their sum.
template <class S, class T>
INLINE float weigh(const T* logits, int n, float most, float least, float inverse_temperature, float* weights) {
  using V = typename S::Vector;
  const int padded = read_line(logits, n, weights);
  for (int k = 0; k < padded; ++k) {
    const float weight = fast_exp((weights[k] - most) * inverse_temperature);
    weights[k] = weights[k] < least ? 0.0f : weight;
  }
  V total{};
  for (int k = 0; k < padded; k += S::kLanes) total += load<V>(weights + k);
  float sum = 0.0f;
  for (int i = 0; i < S::kLanes; ++i) sum += total[i];
  return sum;
}

// out[tile, two vectors] += weights[tile, n] @ embedding[n, two vectors].
template <class S>
INLINE void multiply(const float* weights, int n, const float* embedding, int64_t stride, float* const* out) {
  using V = typename S::Vector;
  V left[S::kTile] = {}, right[S::kTile] = {};
  for (int k = 0; k < n; ++k) {
    const V e0 = load<V>(embedding + k * stride), e1 = load<V>(embedding + k * stride + S::kLanes);
    for (int r = 0; r < S::kTile; ++r) {
      const V w = weights[r * kPart + k] - V{};
      left[r] += w * e0;
      right[r] += w * e1;
    }
  }
  for (int r = 0; r < S::kTile; ++r) {
    store(out[r], load<V>(out[r]) + left[r]);
    store(out[r] + S::kLanes, load<V>(out[r] + S::kLanes) + right[r]);
  }
}

// Rows first .. last - 1, every class a term.
template <class S, class T>
INLINE void dense_rows(const Problem<T>& p, int64_t first, int64_t last) {
  const int64_t num = last - first, whole = p.dim / S::kColumns * S::kColumns, rest = p.dim - whole;
  std::vector<float> most(num), least(num, kLowest), sums(num, 0.0f);
  std::vector<int32_t> keys(p.top_k ? p.num_classes : 0);
  // The last columns, where two vectors would reach into the next row, have buffers of their own.
  std::vector<float> rest_embedding(rest ? kPart * S::kColumns : 0), rest_out(rest ? num * S::kColumns : 0);
  alignas(64) float weights[kMaxTile * kPart] = {};
  alignas(64) float nowhere[kMaxTile * S::kColumns];
  for (int64_t i = 0; i < num; ++i) {
    const T* logits = p.logits + (first + i) * p.row_stride;
    most[i] = row_max<S>(logits, p.num_classes);
    if (p.top_k) least[i] = kth_largest(logits, p.num_classes, p.top_k, keys.data());
    std::fill_n(p.out + (first + i) * p.dim, p.dim, 0.0f);
  }
  for (int64_t k0 = 0; k0 < p.num_classes; k0 += kPart) {
    const int n = static_cast<int>(std::min<int64_t>(kPart, p.num_classes - k0));
    const float* embedding = p.embedding + k0 * p.dim;
    for (int k = 0; rest && k < n; ++k)
      std::copy_n(embedding + k * p.dim + whole, rest, rest_embedding.data() + k * S::kColumns);
    for (int64_t i = 0; i < num; i += S::kTile) {
      const int rows = static_cast<int>(std::min<int64_t>(S::kTile, num - i));
      float* out[S::kTile];
      for (int r = 0; r < S::kTile; ++r) {
        if (r < rows) {
          const T* logits = p.logits + (first + i + r) * p.row_stride + k0;
          sums[i + r] += weigh<S>(logits, n, most[i + r], least[i + r], p.inverse_temperature, weights + r * kPart);
        } else {
          std::fill_n(weights + r * kPart, n, 0.0f);
        }
      }
      for (int64_t d = 0; d < whole; d += S::kColumns) {
        for (int r = 0; r < S::kTile; ++r)
          out[r] = r < rows ? p.out + (first + i + r) * p.dim + d : nowhere + r * S::kColumns;
        multiply<S>(weights, n, embedding + d, p.dim, out);
      }
      if (rest) {
        for (int r = 0; r < S::kTile; ++r)
          out[r] = r < rows ? rest_out.data() + (i + r) * S::kColumns : nowhere + r * S::kColumns;
        multiply<S>(weights, n, rest_embedding.data(), S::kColumns, out);
      }
    }
  }
  for (int64_t i = 0; i < num; ++i) {
    float* out = p.out + (first + i) * p.dim;
    if (rest) std::copy_n(rest_out.data() + i * S::kColumns, rest, out + whole);
    const float scale = 1.0f / sums[i];
    for (int64_t d = 0; d < p.dim; ++d) out[d] *= scale;
  }
}

// out[dim] += sum of weights[i] * embedding[classes[i]], for at most kPart terms.
template <class S>
INLINE void gather(const float* weights, const int32_t* classes, int64_t num, const float* embedding, int64_t dim,
                   float* __restrict out) {
  using V = typename S::Vector;
  constexpr int kVectors = 4, kColumns = kVectors * S::kLanes;
  int64_t d = 0;
  for (; d + kColumns <= dim; d += kColumns) {
    V total[kVectors] = {};
    for (int64_t i = 0; i < num; ++i) {
      const V weight = weights[i] - V{};
      const float* from = embedding + classes[i] * dim + d;
      for (int v = 0; v < kVectors; ++v) total[v] += weight * load<V>(from + v * S::kLanes);
    }
    for (int v = 0; v < kVectors; ++v) store(out + d + v * S::kLanes, load<V>(out + d + v * S::kLanes) + total[v]);
  }
  if (d == dim) return;
  float rest[kColumns] = {};
  for (int64_t i = 0; i < num; ++i) {
    const float* from = embedding + classes[i] * dim + d;
    for (int64_t j = 0; j < dim - d; ++j) rest[j] += weights[i] * from[j];
  }
  for (int64_t j = 0; j < dim - d; ++j) out[d + j] += rest[j];
}

// Rows first .. last - 1, where few classes have a weight: theirs are the only rows of the embedding that are read.
template <class S, class T>
INLINE void sparse_rows(const Problem<T>& p, int64_t first, int64_t last) {
  std::vector<int32_t> keys(p.num_classes), classes(p.num_classes);
  std::vector<float> weights(p.num_classes);
  for (int64_t i = first; i < last; ++i) {
    const T* logits = p.logits + i * p.row_stride;
    const float least = kth_largest(logits, p.num_classes, p.top_k, keys.data());
    float most = kLowest;
    int64_t num = 0;
    for (int64_t k = 0; k < p.num_classes; ++k) {
      classes[num] = static_cast<int32_t>(k);
      num += !(to_float(logits[k]) < least);
    }
    for (int64_t k = 0; k < num; ++k) {
      weights[k] = to_float(logits[classes[k]]);
      most = weights[k] > most ? weights[k] : most;
    }
    for (int64_t k = 0; k < num; ++k) weights[k] = fast_exp((weights[k] - most) * p.inverse_temperature);
    double sum = 0.0;
    for (int64_t k = 0; k < num; ++k) sum += weights[k];
    const float scale = static_cast<float>(1.0 / sum);
    for (int64_t k = 0; k < num; ++k) weights[k] *= scale;
    std::fill_n(p.out + i * p.dim, p.dim, 0.0f);
    for (int64_t k = 0; k < num; k += kPart) {
      const int64_t terms = std::min<int64_t>(kPart, num - k);
      gather<S>(weights.data() + k, classes.data() + k, terms, p.embedding, p.dim, p.out + i * p.dim);
    }
  }
}

template <class S, class T>
INLINE void rows(const Problem<T>& p, int64_t first, int64_t last) {
  // A matrix product gets through this many times more terms a second than scattered rows do.
  constexpr int64_t kDenseAdvantage = 2;
  if (p.top_k && p.top_k * kDenseAdvantage <= p.num_classes) {
    sparse_rows<S>(p, first, last);
  } else {
    dense_rows<S>(p, first, last);
  }
}

template <class T>
TARGET_AVX512 void rows_avx512(const Problem<T>& p, int64_t first, int64_t last) {
  rows<Shape<16, 8>>(p, first, last);
}
template <class T>
TARGET_AVX2 void rows_avx2(const Problem<T>& p, int64_t first, int64_t last) {
  rows<Shape<8, 4>>(p, first, last);
}
template <class T>
void rows_portable(const Problem<T>& p, int64_t first, int64_t last) {
  rows<Shape<4, 4>>(p, first, last);
}

template <class T>
void all_rows(const Problem<T>& p, int64_t num, int threads) {
  const auto part = has_avx512() ? rows_avx512<T> : has_avx2() ? rows_avx2<T> : rows_portable<T>;
  const int64_t terms = p.top_k ? p.top_k : p.num_classes;
  const int64_t nanoseconds = p.num_classes / 4 + terms * p.dim / 50;
  const int parts = threads_for(threads, num, std::max<int64_t>(1, nanoseconds));
  if (parts == 1) return part(p, 0, num);
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int i = 0; i < parts; ++i) {
    // Whole tiles, so that the rows of a tile do not depend on the number of threads.
    const int64_t tiles = (num + kMaxTile - 1) / kMaxTile;
    const int64_t first = tiles * i / parts * kMaxTile, last = std::min(num, tiles * (i + 1) / parts * kMaxTile);
    if (first < last) part(p, first, last);
  }
}

// logits [num, num_classes] of type `dtype` with adjacent classes; embedding [num_classes, dim] and out [num, dim]
// dense float32. top_k 0: every class.
void class_mix(int dtype, uintptr_t logits, int64_t row_stride, uintptr_t embedding, uintptr_t out, int64_t num,
               int64_t num_classes, int64_t dim, float inverse_temperature, int64_t top_k, int threads) {
  const pybind11::gil_scoped_release release;
  with_float_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    const Problem<T> p{pointer<const T>(logits), pointer<const float>(embedding), pointer<float>(out), row_stride,
                       num_classes, dim, inverse_temperature, top_k};
    all_rows(p, num, threads);
  });
}

}  // namespace
}  // namespace ptgm::class_mix

namespace ptgm {

PTGM_BIND(module) { module.def("class_mix", &class_mix::class_mix); }

}  // namespace ptgm

// Vectors of W floats, by the compiler's vector extensions, and tiles of logits built from them.
//
// A tile holds logits as `steps` vectors, in one of two layouts. Row across lanes: one row, W classes per vector, padded
// with -inf; its statistics are reduced over the lanes and then equal in all of them. Row per lane: W rows, one class per
// vector, for small heads; every lane has its own statistics and nothing is reduced. The same kernel serves both.
#pragma once

#include <cmath>
#include <limits>
#include <memory>

#include "common.h"

// Wide vectors pass only between functions that are always inlined, so their ABI does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace ptgm {

template <int W>
struct Lanes {
  typedef float F __attribute__((vector_size(4 * W)));
  typedef int32_t I __attribute__((vector_size(4 * W)));
};
template <int W>
using Floats = typename Lanes<W>::F;
template <int W>
using Ints = typename Lanes<W>::I;

enum class Layout { kRowAcrossLanes, kRowPerLane };

// Up to this many classes, a tile holds one row per lane.
constexpr int64_t kFewClasses = 48;
// Sums over many steps are split into partial sums of about sqrt(steps) terms each, to keep rounding errors small.
inline int64_t partial_of(int64_t steps) {
  return std::max<int64_t>(8, static_cast<int64_t>(std::sqrt(static_cast<double>(steps))));
}
constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

template <int W>
INLINE Floats<W> broadcast(float value) {
  return value - Floats<W>{};
}

template <int W>
INLINE Ints<W> broadcast(int32_t value) {
  return value - Ints<W>{};
}

template <int W>
INLINE Floats<W> load(const float* from) {
  Floats<W> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <int W>
INLINE void store(float* to, Floats<W> v) {
  std::memcpy(to, &v, sizeof(v));
}

// 0, 1, 2, ...
template <int W>
INLINE Ints<W> lane_numbers() {
  Ints<W> v;
  for (int lane = 0; lane < W; ++lane) v[lane] = lane;
  return v;
}

enum class Reduce { kSum, kMax, kMin };

template <Reduce R, class V>
INLINE V combined(V a, V b) {
  if constexpr (R == Reduce::kSum) {
    return a + b;
  } else {
    return R == Reduce::kMax ? (a > b ? a : b) : (a < b ? a : b);
  }
}

// The sum, maximum or minimum of all lanes.
template <Reduce R, int W, class S, class V>
INLINE S over_lanes(V v) {
  if constexpr (W == 4) {
    return combined<R, S>(combined<R, S>(v[0], v[2]), combined<R, S>(v[1], v[3]));
  } else {
    typedef S Half __attribute__((vector_size(2 * W)));
    Half low, high;
    std::memcpy(&low, &v, sizeof(Half));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(Half), sizeof(Half));
    return over_lanes<R, W / 2, S>(combined<R, Half>(low, high));
  }
}

template <Layout L, Reduce R, int W>
INLINE Floats<W> reduced(Floats<W> v) {
  if constexpr (L == Layout::kRowPerLane) return v;
  return broadcast<W>(over_lanes<R, W, float>(v));
}

template <Layout L, Reduce R, int W>
INLINE Ints<W> reduced(Ints<W> v) {
  if constexpr (L == Layout::kRowPerLane) return v;
  return broadcast<W>(over_lanes<R, W, int32_t>(v));
}

// e^x for x <= 0 to 1 ulp, lane by lane; 0 below -87.33, where float32's normal numbers end. Not for NaN.
template <int W>
INLINE Floats<W> exp_nonpositive(Floats<W> x) {
  constexpr float kLog2E = 1.44269504088896341f, kLowest = -87.33654f;
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the sum's low bits.
  const Floats<W> shifted = x * kLog2E + 12582912.0f;
  const Floats<W> n = shifted - 12582912.0f;
  // x - n ln 2, in two parts: the first product is exact.
  const Floats<W> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  // e^r on [-ln 2 / 2, ln 2 / 2], the minimax polynomial of relative error (2e-9).
  Floats<W> p = r * 1.384365356e-3f + 8.374154960e-3f;
  p = p * r + 4.166800013e-2f;
  p = p * r + 1.666643095e-1f;
  p = p * r + 4.999999385e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Floats<W> y = (Floats<W>)((Ints<W>)p + ((Ints<W>)shifted << 23));
  return x < kLowest ? Floats<W>{} : y;
}

// Between e^x and 1.0615 e^x for x <= 0, in four operations: linear between the powers of 2.
template <int W>
INLINE Floats<W> exp_from_above(Floats<W> x) {
  const Floats<W> bits = x * (1.44269504088896341f * 8388608.0f) + 127.0f * 8388608.0f;
  return (Floats<W>)__builtin_convertvector(bits > 0.0f ? bits : Floats<W>{}, Ints<W>);
}
constexpr float kFromAbove = 1.0615f;

INLINE int64_t steps_of(Layout layout, int width, int64_t classes) {
  return layout == Layout::kRowPerLane ? classes : (classes + width - 1) / width;
}

template <int W>
struct Peak {
  Floats<W> max;
  // All ones where the row has no finite maximum or holds a NaN.
  Ints<W> broken;
};

// W values from memory as floats.
template <int W>
INLINE Floats<W> load_as_floats(const float* from) {
  return load<W>(from);
}

template <int W>
INLINE Ints<W> load_bits(const void* from) {
  typedef uint16_t Bits __attribute__((vector_size(2 * W)));
  Bits bits;
  std::memcpy(&bits, from, sizeof(bits));
  return __builtin_convertvector(bits, Ints<W>);
}

template <int W>
INLINE Floats<W> load_as_floats(const bf16* from) {
  return (Floats<W>)(load_bits<W>(from) << 16);
}

template <int W>
INLINE Floats<W> load_as_floats(const f16* from) {
  // As to_float in common.h.
  const Ints<W> bits = load_bits<W>(from), magnitude = bits & 0x7FFF;
  const Floats<W> normal = (Floats<W>)((magnitude << 13) + (0xE0 << 23)) * 0x1.0p-112f;
  const Floats<W> subnormal = (Floats<W>)(magnitude | (126 << 23)) - 0.5f;
  return (Floats<W>)(((bits & 0x8000) << 16) | (magnitude < 0x400 ? (Ints<W>)subnormal : (Ints<W>)normal));
}

// Rows `in`, `in + stride`, ... of logits as a tile, and their maxima. Lanes without a row repeat the last one.
template <int W, Layout L, class T>
INLINE Peak<W> load_tile(const T* in, int64_t stride, int64_t rows, int64_t classes, float* tile) {
  constexpr bool kAcross = L == Layout::kRowAcrossLanes;
  const int64_t steps = steps_of(L, W, classes), whole = kAcross ? classes / W : 0;
  if (kAcross) {
    for (int64_t k = whole * W; k < steps * W; ++k) tile[k] = k < classes ? to_float(in[k]) : -kInfinity;
  } else {
    for (int64_t lane = 0; lane < W; ++lane) {
      const T* row = in + std::min(lane, rows - 1) * stride;
      for (int64_t k = 0; k < classes; ++k) tile[k * W + lane] = to_float(row[k]);
    }
  }
  Floats<W> max = broadcast<W>(-kInfinity);
  Ints<W> broken{};
  for (int64_t k = 0; k < steps; ++k) {
    Floats<W> x;
    if (k < whole) {
      x = load_as_floats<W>(in + k * W);
      store<W>(tile + k * W, x);
    } else {
      x = load<W>(tile + k * W);
    }
    max = x > max ? x : max;
    broken |= x != x;
  }
  max = reduced<L, Reduce::kMax, W>(max);
  // True is -1, the smaller value.
  broken = reduced<L, Reduce::kMin, W>(broken);
  return {max, broken | (max == kInfinity) | (max == -kInfinity)};
}

// The first class whose logit is the maximum.
template <int W, Layout L>
INLINE Ints<W> first_index_of(const float* tile, int64_t steps, int64_t classes, Floats<W> max) {
  const bool across = L == Layout::kRowAcrossLanes;
  const int32_t none = static_cast<int32_t>(classes) - 1;
  Ints<W> best = broadcast<W>(none), index = across ? lane_numbers<W>() : Ints<W>{};
  for (int64_t k = 0; k < steps; ++k) {
    // Integer operations only: GCC splits a selection by two comparisons into scalar lanes.
    const Ints<W> hit = load<W>(tile + k * W) == max, candidate = (index & hit) | (~hit & none);
    best = candidate < best ? candidate : best;
    index += across ? W : 1;
  }
  return reduced<L, Reduce::kMin, W>(best);
}

// The sum of exp((x - max) * factor).
template <int W, Layout L>
INLINE Floats<W> exp_sum(const float* tile, int64_t steps, Floats<W> max, float factor) {
  Floats<W> sum{};
  const int64_t partial_steps = partial_of(steps);
  for (int64_t k = 0; k < steps;) {
    Floats<W> partial{};
    for (const int64_t end = std::min(steps, k + partial_steps); k < end; ++k)
      partial += exp_nonpositive<W>((load<W>(tile + k * W) - max) * factor);
    sum += partial;
  }
  return reduced<L, Reduce::kSum, W>(sum);
}

// Whether max softmax(x) >= least, for a row across lanes. A cheap upper bound of the sum decides most rows; rows that are
// far from confident are decided before their end. `kMargin` covers the bound's rounding.
template <int W>
INLINE bool is_confident(const float* tile, int64_t steps, Floats<W> max, float least) {
  constexpr int64_t kStride = 8;
  constexpr float kMargin = 1.0001f;
  if (least <= 0.0f) return true;
  const float limit = 1.0f / least;
  Floats<W> sum{};
  for (int64_t k = 0; k < steps;) {
    for (const int64_t end = std::min(steps, k + kStride); k < end; ++k)
      sum += exp_from_above<W>(load<W>(tile + k * W) - max);
    if (over_lanes<Reduce::kSum, W, float>(sum) > limit * (kFromAbove * kMargin)) return false;
  }
  if (over_lanes<Reduce::kSum, W, float>(sum) * kMargin < limit) return true;
  return 1.0f / exp_sum<W, Layout::kRowAcrossLanes>(tile, steps, max, 1.0f)[0] >= least;
}

// The number of floats in one tile, for any W.
inline int64_t tile_floats(int64_t classes) {
  constexpr int64_t kWidest = 16;
  return classes <= kFewClasses ? kWidest * classes : (classes + kWidest - 1) / kWidest * kWidest;
}

// Calls rows(first, last, scratch) until `num` rows are done. Rows differ in cost (those that do not count cost next to
// nothing), so threads take them in small shares.
template <class F>
void for_rows(int64_t num, int64_t scratch_floats, int64_t row_nanoseconds, int threads, F&& rows) {
  constexpr int64_t kShare = 16;
  threads = threads_for(threads, num, row_nanoseconds);
  if (threads == 1) {
    const std::unique_ptr<float[]> scratch(new float[scratch_floats]);
    return rows(0, num, scratch.get());
  }
#pragma omp parallel num_threads(threads)
  {
    const std::unique_ptr<float[]> scratch(new float[scratch_floats]);
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < num; first += kShare) rows(first, std::min(num, first + kShare), scratch.get());
  }
}

}  // namespace ptgm

// The consistency losses and their gradient in one pass over weak and strong logits. The weak logits decide whether a row
// counts; strong logits are read only for blocks of rows in which some row counts.
#include "lanes.h"

namespace ptgm::consistency {
namespace {

// Must match METHOD_CODES in kernels/consistency/cpu_impl.py; `kSoft` covers `uda` too.
enum class Method : int { kSoft, kFixmatch, kSquared };

struct Problem {
  const void *weak, *strong;
  int64_t weak_stride, strong_stride, num, classes;
  Method method;
  float inverse_temperature, threshold;
  // One threshold per class, or null; one weight per sample, or null for 1.
  const float *class_thresholds, *sample_weight;
  float* loss;
  // [num, classes], or null if no gradient is requested. Rows that do not count are set to 0 if `fill`.
  float* gradient;
  bool* counts;
  bool fill;
};

template <int W>
struct Row {
  Floats<W> loss;
  // The gradient is strong * by_strong - weak * by_weak over the tiles, minus the sample's weight at the label for fixmatch.
  Floats<W> by_strong, by_weak;
};

// KL(q || p), q = softmax(weak / T): the tiles become exp((weak - max) / T) and exp(strong - max).
template <int W, Layout L>
INLINE Row<W> soft(float* weak, float* strong, int64_t steps, Floats<W> weak_max, Floats<W> strong_max,
                   float inverse_temperature) {
  Floats<W> weak_sum{}, strong_sum{}, dot{};
  const int64_t partial_steps = partial_of(steps);
  for (int64_t k = 0; k < steps;) {
    Floats<W> partial_weak{}, partial_strong{}, partial_dot{};
    for (const int64_t end = std::min(steps, k + partial_steps); k < end; ++k) {
      const Floats<W> a = (load<W>(weak + k * W) - weak_max) * inverse_temperature;
      const Floats<W> b = load<W>(strong + k * W) - strong_max;
      const Floats<W> q = exp_nonpositive<W>(a), p = exp_nonpositive<W>(b), term = q * (a - b);
      // 0 log 0 = 0, also where the strong view excludes the class.
      partial_dot += q > 0.0f ? term : Floats<W>{};
      partial_weak += q;
      partial_strong += p;
      store<W>(weak + k * W, q);
      store<W>(strong + k * W, p);
    }
    dot += partial_dot;
    weak_sum += partial_weak;
    strong_sum += partial_strong;
  }
  dot = reduced<L, Reduce::kSum, W>(dot);
  weak_sum = reduced<L, Reduce::kSum, W>(weak_sum);
  strong_sum = reduced<L, Reduce::kSum, W>(strong_sum);
  Floats<W> loss = dot / weak_sum;
  // A single logarithm of the quotient: where q is close to p it is close to 0, and so is its error.
  const Floats<W> quotient = strong_sum / weak_sum;
  for (int lane = 0; lane < (L == Layout::kRowPerLane ? W : 1); ++lane) loss[lane] += std::log(quotient[lane]);
  return {loss, 1.0f / strong_sum, 1.0f / weak_sum};
}

// The tile becomes exp(x - max); returns their sum.
template <int W, Layout L>
INLINE Floats<W> exponentials(float* tile, int64_t steps, Floats<W> max) {
  Floats<W> sum{};
  const int64_t partial_steps = partial_of(steps);
  for (int64_t k = 0; k < steps;) {
    Floats<W> partial{};
    for (const int64_t end = std::min(steps, k + partial_steps); k < end; ++k) {
      const Floats<W> e = exp_nonpositive<W>(load<W>(tile + k * W) - max);
      partial += e;
      store<W>(tile + k * W, e);
    }
    sum += partial;
  }
  return reduced<L, Reduce::kSum, W>(sum);
}

// CE(p, label): the strong tile becomes exp(strong - max).
template <int W, Layout L>
INLINE Row<W> hard(float* strong, int64_t steps, Floats<W> max, Ints<W> label) {
  constexpr bool kPerLane = L == Layout::kRowPerLane;
  Floats<W> at_label{};
  for (int lane = 0; lane < W; ++lane) at_label[lane] = strong[kPerLane ? label[lane] * W + lane : label[lane]];
  const Floats<W> sum = exponentials<W, L>(strong, steps, max);
  Floats<W> loss = max - at_label;
  for (int lane = 0; lane < (kPerLane ? W : 1); ++lane) loss[lane] += std::log(sum[lane]);
  return {loss, 1.0f / sum, Floats<W>{}};
}

// mean (q - p)^2: the strong tile becomes the gradient.
template <int W, Layout L>
INLINE Row<W> squared(float* weak, float* strong, int64_t steps, int64_t classes, Floats<W> weak_max,
                      Floats<W> strong_max) {
  const Floats<W> weak_sum = exponentials<W, L>(weak, steps, weak_max);
  const Floats<W> strong_sum = exponentials<W, L>(strong, steps, strong_max);
  Floats<W> squares{}, mean{};
  const int64_t partial_steps = partial_of(steps);
  for (int64_t k = 0; k < steps;) {
    Floats<W> partial_squares{}, partial_mean{};
    for (const int64_t end = std::min(steps, k + partial_steps); k < end; ++k) {
      // Divide, do not multiply by 1 / sum: the difference of close values leaves little more than their rounding errors.
      const Floats<W> p = load<W>(strong + k * W) / strong_sum, difference = p - load<W>(weak + k * W) / weak_sum;
      partial_squares += difference * difference;
      partial_mean += p * difference;
      store<W>(strong + k * W, p);
      store<W>(weak + k * W, difference);
    }
    squares += partial_squares;
    mean += partial_mean;
  }
  mean = reduced<L, Reduce::kSum, W>(mean);
  for (int64_t k = 0; k < steps; ++k)
    store<W>(strong + k * W, load<W>(strong + k * W) * (load<W>(weak + k * W) - mean));
  const float count = static_cast<float>(classes);
  return {reduced<L, Reduce::kSum, W>(squares) / count, broadcast<W>(2.0f / count), Floats<W>{}};
}

// The lanes' part of the gradient at step k of a tile.
template <int W>
INLINE Floats<W> gradient_at(int64_t k, const Row<W>& row, bool two_terms, const float* weak, const float* strong) {
  const Floats<W> g = load<W>(strong + k * W) * row.by_strong;
  return two_terms ? g - load<W>(weak + k * W) * row.by_weak : g;
}

template <int W, Layout L>
INLINE void write_gradient(const Problem& p, int64_t first, int64_t rows, Ints<W> counts, Ints<W> label, const Row<W>& row,
                           const float* weak, float* strong) {
  const bool two_terms = p.method == Method::kSoft;
  float* out = p.gradient + first * p.classes;
  if (L == Layout::kRowAcrossLanes) {
    const int64_t whole = p.classes / W, rest = p.classes % W;
    for (int64_t k = 0; k < whole; ++k) store<W>(out + k * W, gradient_at<W>(k, row, two_terms, weak, strong));
    if (rest) {
      const Floats<W> last = gradient_at<W>(whole, row, two_terms, weak, strong);
      std::memcpy(out + whole * W, &last, rest * sizeof(float));
    }
  } else {
    for (int64_t k = 0; k < p.classes; ++k) store<W>(strong + k * W, gradient_at<W>(k, row, two_terms, weak, strong));
    for (int64_t r = 0; r < rows; ++r) {
      if (!counts[r]) {
        if (p.fill) std::fill_n(out + r * p.classes, p.classes, 0.0f);
        continue;
      }
      for (int64_t k = 0; k < p.classes; ++k) out[r * p.classes + k] = strong[k * W + r];
    }
  }
  if (p.method != Method::kFixmatch) return;
  for (int64_t r = 0; r < rows; ++r) {
    if (counts[r]) out[r * p.classes + label[r]] -= p.sample_weight ? p.sample_weight[first + r] : 1.0f;
  }
}

template <int W, Layout L, class T>
INLINE void block(const Problem& p, int64_t first, int64_t rows, float* weak, float* strong) {
  constexpr bool kAcross = L == Layout::kRowAcrossLanes;
  const int64_t steps = steps_of(L, W, p.classes);
  const T* weak_in = static_cast<const T*>(p.weak) + first * p.weak_stride;
  const Peak<W> weak_peak = load_tile<W, L>(weak_in, p.weak_stride, rows, p.classes, weak);
  Ints<W> label{}, counts = ~weak_peak.broken;
  Floats<W> least = broadcast<W>(p.threshold);
  if (p.class_thresholds || p.method == Method::kFixmatch)
    label = first_index_of<W, L>(weak, steps, p.classes, weak_peak.max);
  if (p.class_thresholds) {
    for (int lane = 0; lane < W; ++lane) least[lane] = p.class_thresholds[label[lane]];
  }
  if (p.class_thresholds || p.threshold > 0.0f) {
    if (kAcross)
      counts &= broadcast<W>(is_confident<W>(weak, steps, weak_peak.max, least[0]) ? -1 : 0);
    else
      counts &= 1.0f / exp_sum<W, L>(weak, steps, weak_peak.max, 1.0f) >= least;
  }
  bool any = false;
  for (int64_t r = 0; r < rows; ++r) {
    any |= counts[r] != 0;
    p.counts[first + r] = counts[r] != 0;
    p.loss[first + r] = weak_peak.broken[r] ? kNan : 0.0f;
  }
  if (!any) {
    if (p.gradient && p.fill) std::fill_n(p.gradient + first * p.classes, rows * p.classes, 0.0f);
    return;
  }
  const T* strong_in = static_cast<const T*>(p.strong) + first * p.strong_stride;
  const Peak<W> strong_peak = load_tile<W, L>(strong_in, p.strong_stride, rows, p.classes, strong);
  Row<W> row;
  if (p.method == Method::kSoft) {
    row = soft<W, L>(weak, strong, steps, weak_peak.max, strong_peak.max, p.inverse_temperature);
  } else if (p.method == Method::kFixmatch) {
    row = hard<W, L>(strong, steps, strong_peak.max, label);
  } else {
    row = squared<W, L>(weak, strong, steps, p.classes, weak_peak.max, strong_peak.max);
  }
  row.loss = strong_peak.broken ? broadcast<W>(kNan) : row.loss;
  row.by_strong = strong_peak.broken ? broadcast<W>(kNan) : row.by_strong;
  if (p.sample_weight) {
    Floats<W> weight{};
    for (int64_t lane = 0; lane < W; ++lane) weight[lane] = p.sample_weight[first + std::min(lane, rows - 1)];
    row = {row.loss * weight, row.by_strong * weight, row.by_weak * weight};
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (counts[r]) p.loss[first + r] = row.loss[r];
  }
  if (p.gradient) write_gradient<W, L>(p, first, rows, counts, label, row, weak, strong);
}

template <int W, class T>
INLINE void blocks(const Problem& p, int64_t first, int64_t last, float* scratch, int64_t tile) {
  if (p.classes <= kFewClasses) {
    for (int64_t i = first; i < last; i += W)
      block<W, Layout::kRowPerLane, T>(p, i, std::min<int64_t>(W, last - i), scratch, scratch + tile);
  } else {
    for (int64_t i = first; i < last; ++i) block<W, Layout::kRowAcrossLanes, T>(p, i, 1, scratch, scratch + tile);
  }
}

template <class T>
void rows_portable(const Problem& p, int64_t first, int64_t last, float* scratch, int64_t tile) {
  blocks<4, T>(p, first, last, scratch, tile);
}

template <class T>
TARGET_AVX2 void rows_avx2(const Problem& p, int64_t first, int64_t last, float* scratch, int64_t tile) {
  blocks<8, T>(p, first, last, scratch, tile);
}

template <class T>
TARGET_AVX512 void rows_avx512(const Problem& p, int64_t first, int64_t last, float* scratch, int64_t tile) {
  blocks<16, T>(p, first, last, scratch, tile);
}

template <class T>
void run(const Problem& p, int threads) {
  const auto rows = has_avx512() ? rows_avx512<T> : has_avx2() ? rows_avx2<T> : rows_portable<T>;
  const int64_t tile = tile_floats(p.classes);
  for_rows(p.num, 2 * tile, 4 * p.classes, threads,
           [&](int64_t first, int64_t last, float* scratch) { rows(p, first, last, scratch, tile); });
}

// out[i, :] = gradient[i, :] * grad[i], or 0 where row i does not count: its gradient was never written.
template <class T>
INLINE void scale_row(const float* __restrict gradient, float grad, bool counts, int64_t classes, T* __restrict out) {
  if (!counts) {
    std::memset(out, 0, classes * sizeof(T));
    return;
  }
  for (int64_t k = 0; k < classes; ++k) out[k] = from_float<T>(gradient[k] * grad);
}

template <class T>
void scale_portable(const float* gradient, float grad, bool counts, int64_t classes, T* out) {
  scale_row(gradient, grad, counts, classes, out);
}

template <class T>
TARGET_AVX2 void scale_avx2(const float* gradient, float grad, bool counts, int64_t classes, T* out) {
  scale_row(gradient, grad, counts, classes, out);
}

template <class T>
void scale(const float* gradient, const bool* counts, const float* grad, int64_t grad_stride, int64_t num, int64_t classes,
           T* out, int threads) {
  const auto row = has_avx2() ? scale_avx2<T> : scale_portable<T>;
  const auto one = [&](int64_t i) { row(gradient + i * classes, grad[i * grad_stride], counts[i], classes, out + i * classes); };
  threads = threads_for(threads, num, classes / 4);
  if (threads == 1) {
    for (int64_t i = 0; i < num; ++i) one(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < num; ++i) one(i);
}

}  // namespace
}  // namespace ptgm::consistency

namespace ptgm {

PTGM_BIND(module) {
  // Addresses come from kernels/consistency/cpu_impl.py; their tensors have been checked there.
  module.def("consistency", [](uintptr_t weak, int64_t weak_stride, uintptr_t strong, int64_t strong_stride, int64_t num,
                               int64_t classes, int dtype, int method, float temperature, float threshold,
                               uintptr_t class_thresholds, uintptr_t sample_weight, uintptr_t loss, uintptr_t gradient,
                               uintptr_t counts, bool fill, int threads) {
    const pybind11::gil_scoped_release release;
    const consistency::Problem problem{
        pointer<void>(weak), pointer<void>(strong), weak_stride, strong_stride, num, classes,
        static_cast<consistency::Method>(method), 1.0f / temperature, threshold, pointer<float>(class_thresholds),
        pointer<float>(sample_weight), pointer<float>(loss), pointer<float>(gradient), pointer<bool>(counts), fill};
    with_float_type(dtype, [&](auto type) { consistency::run<decltype(type)>(problem, threads); });
  });
  module.def("consistency_scale", [](uintptr_t gradient, uintptr_t counts, uintptr_t grad, int64_t grad_stride, int64_t num,
                                     int64_t classes, uintptr_t out, int dtype, int threads) {
    const pybind11::gil_scoped_release release;
    with_float_type(dtype, [&](auto type) {
      using T = decltype(type);
      consistency::scale<T>(pointer<float>(gradient), pointer<bool>(counts), pointer<float>(grad), grad_stride, num, classes,
                            pointer<T>(out), threads);
    });
  });
}

}  // namespace ptgm

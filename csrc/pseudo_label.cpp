// Label, confidence and mask of each row of logits, in a single pass.
#include "lanes.h"

namespace ptgm::pseudo_label {
namespace {

struct Problem {
  const void* logits;
  int64_t stride, num, classes;
  float inverse_temperature, threshold;
  int64_t* labels;
  float* confidence;
  bool* mask;
};

template <int W, Layout L, class T>
INLINE void block(const Problem& p, int64_t first, int64_t rows, float* tile) {
  const int64_t steps = steps_of(L, W, p.classes);
  const T* in = static_cast<const T*>(p.logits) + first * p.stride;
  const Peak<W> peak = load_tile<W, L>(in, p.stride, rows, p.classes, tile);
  const Ints<W> label = first_index_of<W, L>(tile, steps, p.classes, peak.max);
  const Floats<W> sum = exp_sum<W, L>(tile, steps, peak.max, p.inverse_temperature);
  const Floats<W> confidence = peak.broken ? broadcast<W>(kNan) : 1.0f / sum;
  for (int64_t r = 0; r < rows; ++r) {
    p.labels[first + r] = label[r];
    p.confidence[first + r] = confidence[r];
    p.mask[first + r] = confidence[r] >= p.threshold;
  }
}

template <int W, class T>
INLINE void blocks(const Problem& p, int64_t first, int64_t last, float* tile) {
  if (p.classes <= kFewClasses) {
    for (int64_t i = first; i < last; i += W)
      block<W, Layout::kRowPerLane, T>(p, i, std::min<int64_t>(W, last - i), tile);
  } else {
    for (int64_t i = first; i < last; ++i) block<W, Layout::kRowAcrossLanes, T>(p, i, 1, tile);
  }
}

template <class T>
void rows_portable(const Problem& p, int64_t first, int64_t last, float* tile) {
  blocks<4, T>(p, first, last, tile);
}

template <class T>
TARGET_AVX2 void rows_avx2(const Problem& p, int64_t first, int64_t last, float* tile) {
  blocks<8, T>(p, first, last, tile);
}

template <class T>
TARGET_AVX512 void rows_avx512(const Problem& p, int64_t first, int64_t last, float* tile) {
  blocks<16, T>(p, first, last, tile);
}

template <class T>
void run(const Problem& p, int threads) {
  const auto rows = has_avx512() ? rows_avx512<T> : has_avx2() ? rows_avx2<T> : rows_portable<T>;
  for_rows(p.num, tile_floats(p.classes), 2 * p.classes, threads,
           [&](int64_t first, int64_t last, float* tile) { rows(p, first, last, tile); });
}

}  // namespace
}  // namespace ptgm::pseudo_label

namespace ptgm {

PTGM_BIND(module) {
  // Addresses come from kernels/pseudo_label/cpu_impl.py; their tensors have been checked there.
  module.def("pseudo_label", [](uintptr_t logits, int64_t stride, int64_t num, int64_t classes, int dtype, float temperature,
                                float threshold, uintptr_t labels, uintptr_t confidence, uintptr_t mask, int threads) {
      const pybind11::gil_scoped_release release;
    const pseudo_label::Problem problem{pointer<void>(logits), stride, num, classes, 1.0f / temperature, threshold,
                                        pointer<int64_t>(labels), pointer<float>(confidence), pointer<bool>(mask)};
    with_float_type(dtype, [&](auto type) { pseudo_label::run<decltype(type)>(problem, threads); });
  });
}

}  // namespace ptgm

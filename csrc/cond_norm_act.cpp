// act(x * scale + shift + residual) on channels-last images: each value is read once, computed in registers and
// written once, or four times when a pixel becomes a 2x2 block.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ptgm::cond_norm_act {
namespace {

enum class Activation : int { kNone, kRelu, kLeakyRelu, kSilu, kTanh };
enum class Mode : int { kPlain, kUpsample, kPhases };

// Values of one block of pixels: small enough for the first-level cache, large enough that loops run long.
constexpr int64_t kBlock = 2048;
// Outputs of this size would push out of the last-level cache what the next op reads, and not stay in it themselves.
constexpr int64_t kStreamBytes = int64_t{16} << 20;
// Below this waking the other threads costs more than they save.
constexpr int64_t kThreadBytes = int64_t{64} << 10;

// A channels-last tensor whose channels are adjacent; strides in elements.
template <class T>
struct Pixels {
  T* data;
  int64_t stride_n, stride_h, stride_w;
  T* at(int64_t n, int64_t i, int64_t j) const { return data + n * stride_n + i * stride_h + j * stride_w; }
};

// Sizes are the output's. `residual_shift` is 1 where the residual has half the output's side.
template <class T>
struct Problem {
  Pixels<const T> x, residual;
  Pixels<T> out;
  const float *scale, *shift;
  int64_t affine_stride;
  int64_t num, channels, height, width;
  Mode mode;
  int residual_shift;
  bool stream;
};

template <Activation A>
INLINE float activate(float v) {
  if (A == Activation::kRelu) return 0.0f > v ? 0.0f : v;
  if (A == Activation::kLeakyRelu) return 0.0f > v ? 0.2f * v : v;
  if (A == Activation::kSilu) return v / (1.0f + fast_exp(-v));
  if (A == Activation::kTanh) {
    // The series below 0.625 (Cephes) keeps the relative error small where 1 - 2 / (e^2v + 1) cancels.
    const float z = v * v;
    float s = -5.70498872745e-3f;
    s = s * z + 2.06390887954e-2f;
    s = s * z - 5.37397155531e-2f;
    s = s * z + 1.33314422036e-1f;
    s = s * z - 3.33332819422e-1f;
    const float near = v + v * z * s;
    const float far = 1.0f - 2.0f / (1.0f + fast_exp(2.0f * v));
    return z < 0.390625f ? near : far;
  }
  return v;
}

template <Activation A, class T>
INLINE void compute(const T* __restrict x, const float* __restrict scale, const float* __restrict shift,
                    const T* __restrict residual, float* __restrict line, int64_t num) {
  if (residual) {
    for (int64_t k = 0; k < num; ++k)
      line[k] = activate<A>(to_float(x[k]) * scale[k] + shift[k] + to_float(residual[k]));
  } else {
    for (int64_t k = 0; k < num; ++k) line[k] = activate<A>(to_float(x[k]) * scale[k] + shift[k]);
  }
}

// Streaming stores leave the caches alone and do not read lines that are overwritten whole.
template <class T>
INLINE void put(T* to, const T* from, int64_t num, bool stream) {
#if defined(__SSE2__)
  constexpr int64_t kPart = 16 / sizeof(T);
  if (stream && (reinterpret_cast<uintptr_t>(to) & 15) == 0 && num % kPart == 0) {
    for (int64_t k = 0; k < num; k += kPart) {
      const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + k), bits);
    }
    return;
  }
#endif
  std::memcpy(to, from, num * sizeof(T));
}

template <class T>
struct Buffers {
  alignas(64) float line[kBlock];
  alignas(64) T packed[kBlock];
};

// One row of the output, or two for upsampling without a full-size residual (`unit` counts input rows then).
template <Activation A, class T>
INLINE void row(const Problem<T>& p, int64_t n, int64_t unit, Buffers<T>& buffers) {
  const float *scale = p.scale + n * p.affine_stride, *shift = p.shift + n * p.affine_stride;
  const int64_t c = p.channels;
  const bool has_residual = p.residual.data != nullptr;
  const int half = p.residual_shift;
  const bool twice = p.mode == Mode::kUpsample && !(has_residual && half == 0);
  const int up = p.mode == Mode::kUpsample && !twice ? 1 : 0;
  const int64_t width = twice ? p.width / 2 : p.width, step = std::max<int64_t>(1, kBlock / c);
  for (int64_t first = 0; first < width; first += step) {
    const int64_t last = std::min(width, first + step);
    for (int64_t k0 = 0; k0 < c; k0 += kBlock) {
      const int64_t kn = std::min(c - k0, kBlock);
      for (int64_t j = first; j < last; ++j) {
        const T* x;
        if (p.mode == Mode::kPhases) {
          const int64_t a = unit & 1, b = j & 1;
          x = p.x.at(n, (unit >> 1) + a, (j >> 1) + b) + (2 * a + b) * c;
        } else {
          x = p.x.at(n, unit >> up, j >> up);
        }
        const T* residual = nullptr;
        if (has_residual) residual = twice ? p.residual.at(n, unit, j) : p.residual.at(n, unit >> half, j >> half);
        compute<A>(x + k0, scale + k0, shift + k0, residual ? residual + k0 : nullptr, buffers.line + (j - first) * kn, kn);
      }
      const int64_t num = (last - first) * kn;
      convert_row(buffers.packed, buffers.line, num);
      if (!twice) {
        put(p.out.at(n, unit, first) + k0, buffers.packed, num, p.stream);
        continue;
      }
      for (int64_t a = 0; a < 2; ++a) {
        for (int64_t j = first; j < last; ++j) {
          T* to = p.out.at(n, 2 * unit + a, 2 * j) + k0;
          put(to, buffers.packed + (j - first) * kn, kn, p.stream);
          put(to + c, buffers.packed + (j - first) * kn, kn, p.stream);
        }
      }
    }
  }
}

template <Activation A, class T>
void row_portable(const Problem<T>& p, int64_t n, int64_t unit, Buffers<T>& buffers) {
  row<A>(p, n, unit, buffers);
}

template <Activation A, class T>
TARGET_AVX2 void row_avx2(const Problem<T>& p, int64_t n, int64_t unit, Buffers<T>& buffers) {
  row<A>(p, n, unit, buffers);
}

template <Activation A, class T>
void run(const Problem<T>& p, int threads) {
  const auto one = has_avx2() ? row_avx2<A, T> : row_portable<A, T>;
  const bool twice = p.mode == Mode::kUpsample && !(p.residual.data && p.residual_shift == 0);
  const int64_t units = twice ? p.height / 2 : p.height, total = p.num * units;
#pragma omp parallel num_threads(threads)
  {
    Buffers<T> buffers;
#pragma omp for schedule(static)
    for (int64_t k = 0; k < total; ++k) one(p, k / units, k % units, buffers);
#if defined(__SSE2__)
    if (p.stream) _mm_sfence();
#endif
  }
}

template <class T>
void call(uintptr_t x, const std::vector<int64_t>& x_strides, uintptr_t residual,
          const std::vector<int64_t>& residual_strides, bool residual_half, uintptr_t scale, uintptr_t shift,
          bool per_sample, uintptr_t out, const std::vector<int64_t>& shape, int mode, int activation, int threads) {
  Problem<T> p{};
  p.num = shape[0], p.channels = shape[1], p.height = shape[2], p.width = shape[3];
  p.x = {reinterpret_cast<const T*>(x), x_strides[0], x_strides[2], x_strides[3]};
  if (residual)
    p.residual = {reinterpret_cast<const T*>(residual), residual_strides[0], residual_strides[2], residual_strides[3]};
  p.residual_shift = residual_half ? 1 : 0;
  p.out = {reinterpret_cast<T*>(out), p.height * p.width * p.channels, p.width * p.channels, p.channels};
  p.scale = reinterpret_cast<const float*>(scale);
  p.shift = reinterpret_cast<const float*>(shift);
  p.affine_stride = per_sample ? p.channels : 0;
  p.mode = static_cast<Mode>(mode);
  const int64_t bytes = p.num * p.channels * p.height * p.width * static_cast<int64_t>(sizeof(T));
  p.stream = bytes >= kStreamBytes;
  if (bytes < kThreadBytes) threads = 1;
  switch (static_cast<Activation>(activation)) {
    case Activation::kNone: return run<Activation::kNone>(p, threads);
    case Activation::kRelu: return run<Activation::kRelu>(p, threads);
    case Activation::kLeakyRelu: return run<Activation::kLeakyRelu>(p, threads);
    case Activation::kSilu: return run<Activation::kSilu>(p, threads);
    case Activation::kTanh: return run<Activation::kTanh>(p, threads);
  }
  throw std::invalid_argument("cond_norm_act: unknown activation");
}

}  // namespace
}  // namespace ptgm::cond_norm_act

void bind_cond_norm_act(pybind11::module_& m) {
  // Addresses and element strides come from kernels/cond_norm_act/cpu_impl.py, which has checked what they belong to.
  m.def("cond_norm_act", [](int dtype, uintptr_t x, const std::vector<int64_t>& x_strides, uintptr_t residual,
                            const std::vector<int64_t>& residual_strides, bool residual_half, uintptr_t scale,
                            uintptr_t shift, bool per_sample, uintptr_t out, const std::vector<int64_t>& shape,
                            int mode, int activation, int threads) {
    const pybind11::gil_scoped_release release;
    const auto pass = [&](auto tag) {
      ptgm::cond_norm_act::call<decltype(tag)>(x, x_strides, residual, residual_strides, residual_half, scale, shift,
                                               per_sample, out, shape, mode, activation, threads);
    };
    if (dtype == kFloat32) return pass(float{});
    if (dtype == kBFloat16) return pass(bf16{});
    if (dtype == kFloat16) return pass(f16{});
    throw std::invalid_argument("cond_norm_act: unknown dtype");
  });
}

// act(x * scale + shift + residual) on channels-last images: each value is read once and written once, or four times when
// a pixel becomes a 2x2 block. Rows go through a block in the L1 cache, which keeps every loop simple.
#include <pybind11/stl.h>

#include <type_traits>
#include <vector>

#include "common.h"
#include "stream.h"

namespace ptgm {
namespace {

enum class Activation : int { kNone, kRelu, kLeakyRelu, kSilu, kTanh };
enum class Mode : int { kPlain, kUpsample, kPhases };

// Values per block of pixels: small enough for the L1 cache, large enough for long loops.
constexpr int64_t kBlock = 2048;
// An output of this size would evict from the last-level cache what the next op reads, without staying there itself.
constexpr int64_t kStreamBytes = int64_t{16} << 20;
// Below this size, waking the other threads costs more than they save.
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
  // How to store an output that is too large for the caches; null if it is not.
  Copy stream;

  // Upsampling computes a pixel once and writes it four times, unless a full-size residual makes the four differ.
  bool repeats() const { return mode == Mode::kUpsample && !(residual.data && residual_shift == 0); }

  // Rows of work per sample: rows of the input where each feeds two rows of the output, else rows of the output.
  int64_t units() const {
    if (mode == Mode::kPhases) return height / 2 + 1;
    return repeats() ? height / 2 : height;
  }
};

template <class T>
struct Buffers {
  alignas(64) float line[kBlock];
  alignas(64) T packed[kBlock];
};

// The comparisons propagate NaN, as PyTorch's activations do.
template <Activation A>
INLINE float activate(float v) {
  if (A == Activation::kRelu) return 0.0f > v ? 0.0f : v;
  if (A == Activation::kLeakyRelu) return 0.0f > v ? 0.2f * v : v;
  if (A == Activation::kSilu) return v / (1.0f + fast_exp(-v));
  if (A == Activation::kTanh) {
    // The series below 0.625 (Cephes' tanhf) keeps the relative error small where 1 - 2 / (e^2v + 1) cancels.
    const float z = v * v;
    float s = -5.70498872745e-3f;
    s = s * z + 2.06390887954e-2f;
    s = s * z - 5.37397155531e-2f;
    s = s * z + 1.33314422036e-1f;
    s = s * z - 3.33332819422e-1f;
    const float near = v + v * z * s, far = 1.0f - 2.0f / (1.0f + fast_exp(2.0f * v));
    return z < 0.390625f ? near : far;
  }
  return v;
}

// Exponentials run over a whole block, not over a pixel's channels: with few channels such a loop is too short.
constexpr bool is_late(Activation a) { return a == Activation::kSilu || a == Activation::kTanh; }

template <Activation A, class T>
INLINE void compute(const T* __restrict x, const float* __restrict scale, const float* __restrict shift,
                    const T* __restrict residual, float* __restrict line, int64_t num) {
  constexpr Activation kNow = is_late(A) ? Activation::kNone : A;
  if (residual) {
    for (int64_t k = 0; k < num; ++k)
      line[k] = activate<kNow>(to_float(x[k]) * scale[k] + shift[k] + to_float(residual[k]));
  } else {
    for (int64_t k = 0; k < num; ++k) line[k] = activate<kNow>(to_float(x[k]) * scale[k] + shift[k]);
  }
}

// Returns the block in the output's type.
template <Activation A, class T>
INLINE const T* pack(Buffers<T>& b, int64_t num) {
  if (is_late(A))
    for (int64_t k = 0; k < num; ++k) b.line[k] = activate<A>(b.line[k]);
  if constexpr (std::is_same_v<T, float>) {
    return b.line;
  } else {
    convert_row(b.packed, b.line, num);
    return b.packed;
  }
}

template <class T>
INLINE void put(T* to, const T* from, int64_t num, Copy stream) {
  const int64_t bytes = num * static_cast<int64_t>(sizeof(T));
  if (stream) return stream(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from), bytes);
  std::memcpy(to, from, bytes);
}

// Channels c0 .. c0 + cn - 1 of one sample: all of them, or a part if a pixel is larger than a block.
template <Activation A, class T>
struct Rows {
  const Problem<T>& p;
  Buffers<T>& buffers;
  const float *scale, *shift;
  int64_t n, c0, cn;

  INLINE void pixel(const T* x, const T* residual, int64_t slot) {
    compute<A>(x + c0, scale, shift, residual ? residual + c0 : nullptr, buffers.line + slot * cn, cn);
  }

  INLINE const T* residual_at(int64_t i, int64_t j) const {
    return p.residual.data ? p.residual.at(n, i, j) : nullptr;
  }

  // Pixels first .. last - 1 of row i of the output.
  INLINE void plain(int64_t i, int64_t first, int64_t last) {
    const int up = p.mode == Mode::kUpsample ? 1 : 0, half = p.residual_shift;
    for (int64_t j = first; j < last; ++j) {
      pixel(p.x.at(n, i >> up, j >> up), residual_at(i >> half, j >> half), j - first);
    }
    flush(i, first, last - first);
  }

  // Pixels of row i of the input, each written to its 2x2 block.
  INLINE void repeat(int64_t i, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) pixel(p.x.at(n, i, j), residual_at(i, j), j - first);
    const T* packed = pack<A>(buffers, (last - first) * cn);
    for (int64_t a = 0; a < 2; ++a) {
      for (int64_t j = first; j < last; ++j) {
        T* to = p.out.at(n, 2 * i + a, 2 * j) + c0;
        put(to, packed + (j - first) * cn, cn, p.stream);
        put(to + p.channels, packed + (j - first) * cn, cn, p.stream);
      }
    }
  }

  // Pixels of row i of a phase convolution's output: x[i, j] holds y[2i - a, 2j - b] in group 2a + b. It is read strictly
  // in order, as the hardware prefetcher needs. The block holds what goes to row 2i, then what goes to row 2i - 1.
  INLINE void interleave(int64_t i, int64_t first, int64_t last) {
    const int half = p.residual_shift;
    const int64_t begin = std::max<int64_t>(0, 2 * first - 1), num = std::min(p.width, 2 * last - 1) - begin;
    for (int64_t j = first; j < last; ++j) {
      for (int64_t group = 0; group < 4; ++group) {
        const int64_t a = group >> 1, y = 2 * i - a, x = 2 * j - (group & 1);
        if (x < 0 || x >= p.width || y < 0 || y >= p.height) continue;
        pixel(p.x.at(n, i, j) + group * p.channels, residual_at(y >> half, x >> half), a * num + x - begin);
      }
    }
    const T* packed = pack<A>(buffers, 2 * num * cn);
    for (int64_t a = 0; a < 2; ++a) {
      const int64_t y = 2 * i - a;
      if (y >= 0 && y < p.height) scatter(y, begin, packed + a * num * cn, num);
    }
  }

  INLINE void flush(int64_t i, int64_t first, int64_t pixels) { scatter(i, first, pack<A>(buffers, pixels * cn), pixels); }

  INLINE void scatter(int64_t i, int64_t first, const T* packed, int64_t pixels) {
    if (cn == p.channels) return put(p.out.at(n, i, first), packed, pixels * cn, p.stream);
    for (int64_t j = 0; j < pixels; ++j) put(p.out.at(n, i, first + j) + c0, packed + j * cn, cn, p.stream);
  }
};
template <Activation A, class T>
INLINE void row(const Problem<T>& p, int64_t unit, Buffers<T>& buffers) {
  const int64_t n = unit / p.units(), i = unit % p.units();
  const bool phases = p.mode == Mode::kPhases;
  const int64_t width = phases ? p.width / 2 + 1 : p.repeats() ? p.width / 2 : p.width;
  for (int64_t c0 = 0; c0 < p.channels; c0 += kBlock / 4) {
    const int64_t cn = std::min(p.channels - c0, kBlock / 4), affine = n * p.affine_stride + c0;
    Rows<A, T> rows{p, buffers, p.scale + affine, p.shift + affine, n, c0, cn};
    // With phases, an input pixel yields four output pixels.
    const int64_t step = kBlock / cn / (phases ? 4 : 1);
    for (int64_t first = 0; first < width; first += step) {
      const int64_t last = std::min(width, first + step);
      if (phases)
        rows.interleave(i, first, last);
      else if (p.repeats())
        rows.repeat(i, first, last);
      else
        rows.plain(i, first, last);
    }
  }
}

template <Activation A, class T>
void row_portable(const Problem<T>& p, int64_t unit, Buffers<T>& buffers) {
  row<A>(p, unit, buffers);
}
template <Activation A, class T>
TARGET_AVX2 void row_avx2(const Problem<T>& p, int64_t unit, Buffers<T>& buffers) {
  row<A>(p, unit, buffers);
}
template <Activation A, class T>
TARGET_AVX512 void row_avx512(const Problem<T>& p, int64_t unit, Buffers<T>& buffers) {
  row<A>(p, unit, buffers);
}

template <Activation A, class T>
void run(const Problem<T>& p, int threads) {
  const auto one = has_avx512() ? row_avx512<A, T> : has_avx2() ? row_avx2<A, T> : row_portable<A, T>;
  const int64_t total = p.num * p.units();
#pragma omp parallel num_threads(threads)
  {
    Buffers<T> buffers;
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < total; ++unit) one(p, unit, buffers);
    if (p.stream) end_stream();
  }
}

template <class T>
void run_activation(const Problem<T>& p, int activation, int threads) {
  switch (static_cast<Activation>(activation)) {
    case Activation::kNone:
      return run<Activation::kNone>(p, threads);
    case Activation::kRelu:
      return run<Activation::kRelu>(p, threads);
    case Activation::kLeakyRelu:
      return run<Activation::kLeakyRelu>(p, threads);
    case Activation::kSilu:
      return run<Activation::kSilu>(p, threads);
    case Activation::kTanh:
      return run<Activation::kTanh>(p, threads);
  }
  throw std::invalid_argument("no activation has the code " + std::to_string(activation));
}

using Sizes = std::vector<int64_t>;

template <class T>
Pixels<const T> pixels(uintptr_t address, const Sizes& strides) {
  return {pointer<const T>(address), strides[0], strides[2], strides[3]};
}

// Strides of [N, C, H, W] are in elements, with 1 for the channels; `shape` is the output's, which is dense and channels-last.
void cond_norm_act(int dtype, uintptr_t x, const Sizes& x_strides, uintptr_t residual, const Sizes& residual_strides,
                   bool residual_half, uintptr_t scale, uintptr_t shift, bool per_sample, uintptr_t out,
                   const Sizes& shape, int mode, int activation, int threads) {
  const pybind11::gil_scoped_release release;
  with_float_type(dtype, [&](auto tag) {
    using T = decltype(tag);
    const int64_t num = shape[0], channels = shape[1], height = shape[2], width = shape[3];
    const int64_t bytes = num * channels * height * width * static_cast<int64_t>(sizeof(T));
    const Pixels<T> dense{pointer<T>(out), height * width * channels, width * channels, channels};
    const Problem<T> p{pixels<T>(x, x_strides),     pixels<T>(residual, residual_strides),
                       dense,                       pointer<const float>(scale),
                       pointer<const float>(shift), per_sample ? channels : 0,
                       num,                         channels,
                       height,                      width,
                       static_cast<Mode>(mode),     residual_half ? 1 : 0,
                       bytes >= kStreamBytes ? streaming_copy() : nullptr};
    run_activation(p, activation, bytes < kThreadBytes ? 1 : threads);
  });
}

}  // namespace

PTGM_BIND(module) { module.def("cond_norm_act", &cond_norm_act); }

}  // namespace ptgm

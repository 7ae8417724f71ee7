// Views on the CPU: each image is unpacked once into a padded float tile that stays in cache, and both views sample it.
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <vector>

#include "common.h"
#include "views.h"

namespace ptgm::views {
namespace {

INLINE float unit(bf16 value) { return views::unit(to_float(value)); }
INLINE float unit(f16 value) { return views::unit(to_float(value)); }
using views::unit;

typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));

struct Image {
  const void* data;
  int64_t stride_c, stride_h, stride_w;
};

// (u - mean) / std as a product and a sum, repeated along a row of channels-last values.
struct Normalize {
  std::unique_ptr<float[]> factor, offset;

  Normalize(Size s, const float* mean, const float* std_)
      : factor(new float[s.width * s.channels]), offset(new float[s.width * s.channels]) {
    for (int k = 0; k < s.width * s.channels; ++k) {
      const int c = k % s.channels;
      factor[k] = 1.0f / std_[c];
      offset[k] = -mean[c] / std_[c];
    }
  }
};

// One thread's buffers. A colour pixel of the tile has four floats, the last unused, so that two horizontal
// neighbors are one 32-byte load.
struct Scratch {
  int row;
  std::unique_ptr<float[]> tile, line, weight_x, weight_y;
  std::unique_ptr<int[]> index;

  explicit Scratch(const Sizes& s)
      : row((s.in.width + 3) * (s.in.channels == 1 ? 1 : 4)),
        tile(new float[static_cast<size_t>(s.in.height + 3) * row]),
        line(new float[4 * static_cast<size_t>(std::max(s.in.width, s.out.width)) + 8]()),
        weight_x(new float[s.out.width]),
        weight_y(new float[s.out.width]),
        index(new int[s.out.width]) {}
};

// By reference: a 32-byte vector as an argument or a result would have an ABI that depends on the instruction set.
template <class V>
INLINE void load(V& v, const float* p) {
  std::memcpy(&v, p, sizeof(v));
}

INLINE void store(float* p, const f4& v) { std::memcpy(p, &v, sizeof(v)); }

template <class T>
INLINE void unpack(const Image& image, Size size, Scratch& s) {
  const T* data = static_cast<const T*>(image.data);
  const int width = size.width;
  for (int i = 0; i < size.height; ++i) {
    float* row = s.tile.get() + static_cast<size_t>(i + 1) * s.row;
    const T* in = data + i * image.stride_h;
    if (size.channels == 1) {
      float* out = row + 1;
      if (image.stride_w == 1) {
        for (int j = 0; j < width; ++j) out[j] = unit(in[j]);
      } else {
        for (int j = 0; j < width; ++j) out[j] = unit(in[j * image.stride_w]);
      }
      continue;
    }
    float* out = row + 4;
    float* line = s.line.get();
    if (image.stride_c == 1 && image.stride_w == 3) {
      for (int k = 0; k < 3 * width; ++k) line[k] = unit(in[k]);
      for (int j = 0; j < width; ++j) std::memcpy(out + 4 * j, line + 3 * j, sizeof(f4));
    } else if (image.stride_w == 1) {
      for (int c = 0; c < 3; ++c) {
        const T* plane = in + c * image.stride_c;
        float* to = line + static_cast<size_t>(c) * width;
        for (int j = 0; j < width; ++j) to[j] = unit(plane[j]);
      }
      const float *r = line, *g = line + width, *b = line + 2 * width;
      for (int j = 0; j < width; ++j) store(out + 4 * j, f4{r[j], g[j], b[j], 0.0f});
    } else {
      for (int j = 0; j < width; ++j) {
        const T* p = in + j * image.stride_w;
        store(out + 4 * j, f4{unit(p[0]), unit(p[image.stride_c]), unit(p[2 * image.stride_c]), 0.0f});
      }
    }
  }
}

INLINE void fill_border(Size size, Scratch& s, float fill) {
  const int pixel = size.channels == 1 ? 1 : 4, height = size.height + 3;
  float* tile = s.tile.get();
  std::fill_n(tile, s.row, fill);
  std::fill_n(tile + static_cast<size_t>(height - 2) * s.row, 2 * static_cast<size_t>(s.row), fill);
  for (int i = 1; i < height - 2; ++i) {
    float* row = tile + static_cast<size_t>(i) * s.row;
    std::fill_n(row, pixel, fill);
    std::fill_n(row + s.row - 2 * pixel, 2 * pixel, fill);
  }
}

template <bool kScaled>
INLINE void locate(const Geometry& g, int i, const Sizes& sizes, Scratch& s) {
  const Size in = sizes.in, out = sizes.out;
  const float y = from_centre(i, out.height);
  const float base_x = g.bx * y + g.cx, base_y = g.by * y + g.cy;
  const float scale_x = sizes.scale_x, scale_y = sizes.scale_y;
  const int pixel = in.channels == 1 ? 1 : 4, row = s.row;
  int* index = s.index.get();
  float *weight_x = s.weight_x.get(), *weight_y = s.weight_y.get();
  for (int j = 0; j < out.width; ++j) {
    const float x = from_centre(j, out.width);
    float in_x = g.ax * x + base_x, in_y = g.ay * x + base_y;
    if (kScaled) {
      in_x = scaled(in_x, scale_x, in.width, out.width);
      in_y = scaled(in_y, scale_y, in.height, out.height);
    }
    const Tap tx = tap(in_x, in.width), ty = tap(in_y, in.height);
    index[j] = ty.index * row + tx.index * pixel;
    weight_x[j] = tx.weight;
    weight_y[j] = ty.weight;
  }
}

INLINE void grey_row(const float* m, int width, const Scratch& s, float* out) {
  const float* tile = s.tile.get();
  for (int j = 0; j < width; ++j) {
    const float* top = tile + s.index[j];
    const float* bottom = top + s.row;
    const float left = lerp(top[0], bottom[0], s.weight_y[j]), right = lerp(top[1], bottom[1], s.weight_y[j]);
    out[j] = lerp(left, right, s.weight_x[j]);
  }
  const float gain = m[0], lift = m[1];
  for (int j = 0; j < width; ++j) out[j] = out[j] * gain + lift;
}

template <bool kMatrix>
INLINE void colour_row(const float* m, int width, const Scratch& s, float* out) {
  const float* tile = s.tile.get();
  const f4 from_r = {m[0], m[4], m[8], 0.0f}, from_g = {m[1], m[5], m[9], 0.0f}, from_b = {m[2], m[6], m[10], 0.0f};
  const f4 lift = {m[3], m[7], m[11], 0.0f};
  for (int j = 0; j < width; ++j) {
    const float* top = tile + s.index[j];
    f8 pair, below;
    load(pair, top);
    load(below, top + s.row);
    pair += s.weight_y[j] * (below - pair);
    const f4 left = __builtin_shufflevector(pair, pair, 0, 1, 2, 3);
    const f4 right = __builtin_shufflevector(pair, pair, 4, 5, 6, 7);
    f4 u = lerp(left, right, s.weight_x[j]);
    if (kMatrix) u = from_r * u[0] + (from_g * u[1] + (from_b * u[2] + lift));
    // The fourth lane is overwritten by the next pixel; `out` has room for it after the last.
    store(out + 3 * j, u);
  }
}

// Clip, posterize, solarize and normalize a row of values; `factor` and `offset` repeat the channels' along the row.
template <bool kSteps>
INLINE void finish_row(const Pointwise& p, const float* factor, const float* offset, int values, float* row) {
  const Pointwise steps = p;
  for (int k = 0; k < values; ++k) {
    const float u = kSteps ? finish(row[k], steps) : clip(row[k]);
    row[k] = u * factor[k] + offset[k];
  }
}

INLINE int border(float position, int size) {
  const float up = std::ceil(position);
  return up > 0.0f ? (up < static_cast<float>(size) ? static_cast<int>(up) : size) : 0;
}

INLINE bool is_identity(const float* m) {
  static constexpr float kIdentity[12] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0};
  return std::equal(m, m + 12, kIdentity);
}

template <class O>
INLINE void render(const float* row, const Normalize& norm, const Sizes& sizes, Scratch& s, O* out) {
  const Geometry g = geometry(row);
  const Size size = sizes.out;
  const Pointwise p = pointwise(row);
  const float* matrix = row + 6;
  const bool identity = is_identity(matrix), steps = p.levels > 0.0f || p.threshold <= 1.0f;
  const bool resized = sizes.differ();
  const int c = size.channels, values = size.width * c;
  const int hole_top = border(p.top, size.height), hole_bottom = border(p.top + p.side, size.height);
  const int hole_left = c * border(p.left, size.width), hole_right = c * border(p.left + p.side, size.width);
  const float *factor = norm.factor.get(), *offset = norm.offset.get();
  float* line = s.line.get();
  fill_border(sizes.in, s, p.fill);
  for (int i = 0; i < size.height; ++i) {
    if (resized)
      locate<true>(g, i, sizes, s);
    else
      locate<false>(g, i, sizes, s);
    if (c == 1)
      grey_row(matrix, size.width, s, line);
    else if (identity)
      colour_row<false>(matrix, size.width, s, line);
    else
      colour_row<true>(matrix, size.width, s, line);
    if (steps)
      finish_row<true>(p, factor, offset, values, line);
    else
      finish_row<false>(p, factor, offset, values, line);
    if (i >= hole_top && i < hole_bottom) {
      for (int k = hole_left; k < hole_right; ++k) line[k] = p.fill * factor[k] + offset[k];
    }
    convert_row(out + static_cast<size_t>(i) * values, line, values);
  }
}

template <class T, class O>
struct Batch {
  const T* images;
  int64_t stride_n, stride_c, stride_h, stride_w;
  int64_t num;
  Sizes sizes;
  const float *weak, *strong;
  O *weak_out, *strong_out;
};

template <class T, class O>
INLINE void sample(const Batch<T, O>& b, int64_t n, const Normalize& norm, Scratch& s) {
  const Size out = b.sizes.out;
  const int64_t values = static_cast<int64_t>(out.channels) * out.height * out.width;
  unpack<T>({b.images + n * b.stride_n, b.stride_c, b.stride_h, b.stride_w}, b.sizes.in, s);
  render(b.weak + n * kNumParameters, norm, b.sizes, s, b.weak_out + n * values);
  if (b.strong) render(b.strong + n * kNumParameters, norm, b.sizes, s, b.strong_out + n * values);
}

template <class T, class O>
void sample_portable(const Batch<T, O>& b, int64_t n, const Normalize& norm, Scratch& s) {
  sample(b, n, norm, s);
}

template <class T, class O>
TARGET_AVX2 void sample_avx2(const Batch<T, O>& b, int64_t n, const Normalize& norm, Scratch& s) {
  sample(b, n, norm, s);
}

template <class T, class O>
void run(const Batch<T, O>& b, const float* mean, const float* std_, int threads) {
  const auto one = has_avx2() ? sample_avx2<T, O> : sample_portable<T, O>;
  const Normalize norm(b.sizes.out, mean, std_);
  // Two to four nanoseconds a pixel of a view.
  const int64_t cost = int64_t{3} * b.sizes.out.height * b.sizes.out.width * (b.strong ? 2 : 1);
  const int parts = threads_for(threads, b.num, cost);
#pragma omp parallel num_threads(parts)
  {
    Scratch scratch(b.sizes);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < b.num; ++n) one(b, n, norm, scratch);
  }
}

using Numbers = std::vector<int64_t>;

// Shape and element strides of the images; height and width of the views, at least the images'. Outputs are dense and
// channels-last. strong and strong_out may be 0.
void views(int input, uintptr_t images, const Numbers& shape, const Numbers& strides, const Numbers& view_size,
           uintptr_t weak, uintptr_t strong, int output, uintptr_t weak_out, uintptr_t strong_out,
           const std::vector<float>& mean, const std::vector<float>& std_, int threads) {
  const pybind11::gil_scoped_release release;
  const auto from = [&](auto in) {
    with_float_type(output, [&](auto out) {
      using T = decltype(in);
      using O = decltype(out);
      const int channels = static_cast<int>(shape[1]);
      const Size image{channels, static_cast<int>(shape[2]), static_cast<int>(shape[3])};
      const Size view{channels, static_cast<int>(view_size[0]), static_cast<int>(view_size[1])};
      const Batch<T, O> batch{pointer<const T>(images), strides[0],          strides[1],
                              strides[2],               strides[3],          shape[0],
                              Sizes(image, view),       pointer<const float>(weak), pointer<const float>(strong),
                              pointer<O>(weak_out),     pointer<O>(strong_out)};
      run(batch, mean.data(), std_.data(), threads);
    });
  };
  input == kUInt8 ? from(uint8_t{}) : with_float_type(input, from);
}

}  // namespace
}  // namespace ptgm::views

namespace ptgm {

PTGM_BIND(module) {
  module.def("views", &views::views);
}

}  // namespace ptgm

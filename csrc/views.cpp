// Views on the CPU: each image is unpacked once into a padded float tile that stays in cache, and both views sample it.
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "common.h"
#include "view_tile.h"
#include "views.h"

namespace ptgm::views {
namespace {

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
    // The fourth lane is overwritten by the next pixel; `out` has room for it after the last pixel.
    store(out + 3 * j, u);
  }
}

// Clip, posterize, solarize and normalize a row of values; `factor` and `offset` repeat the per-channel values along it.
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
  const bool grows = sizes.grows();
  const int c = size.channels, values = size.width * c;
  const int hole_top = border(p.top, size.height), hole_bottom = border(p.top + p.side, size.height);
  const int hole_left = c * border(p.left, size.width), hole_right = c * border(p.left + p.side, size.width);
  const float *factor = norm.factor.get(), *offset = norm.offset.get();
  float* line = s.line.get();
  fill_border(sizes.in, s, p.fill);
  for (int i = 0; i < size.height; ++i) {
    if (grows)
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
INLINE void sample(const Batch<T, O>& b, int64_t n, const Normalize& norm, const Shrink* shrink, Scratch& s) {
  const Size out = b.sizes.out;
  const int64_t values = static_cast<int64_t>(out.channels) * out.height * out.width;
  const Image image{b.images + n * b.stride_n, b.stride_c, b.stride_h, b.stride_w};
  if (shrink)
    shrink_into_tile<T>(image, b.sizes, *shrink, s);
  else
    unpack<T>(image, b.sizes.in, s);
  render(b.weak + n * kNumParameters, norm, b.sizes, s, b.weak_out + n * values);
  if (b.strong) render(b.strong + n * kNumParameters, norm, b.sizes, s, b.strong_out + n * values);
}

template <class T, class O>
void sample_portable(const Batch<T, O>& b, int64_t n, const Normalize& norm, const Shrink* shrink, Scratch& s) {
  sample(b, n, norm, shrink, s);
}

template <class T, class O>
TARGET_AVX2 void sample_avx2(const Batch<T, O>& b, int64_t n, const Normalize& norm, const Shrink* shrink, Scratch& s) {
  sample(b, n, norm, shrink, s);
}

template <class T, class O>
void run(const Batch<T, O>& b, const float* mean, const float* std_, int threads) {
  const auto one = has_avx2() ? sample_avx2<T, O> : sample_portable<T, O>;
  const Normalize norm(b.sizes.out, mean, std_);
  std::optional<Shrink> shrink;
  if (b.sizes.shrinks()) shrink.emplace(b.sizes);
  // Two to four nanoseconds per pixel of a view, one per pixel of the image.
  const int64_t cost = int64_t{3} * b.sizes.out.height * b.sizes.out.width * (b.strong ? 2 : 1) +
                       int64_t{b.sizes.image.height} * b.sizes.image.width;
  const int parts = threads_for(threads, b.num, cost);
#pragma omp parallel num_threads(parts)
  {
    Scratch scratch(b.sizes);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < b.num; ++n) one(b, n, norm, shrink ? &*shrink : nullptr, scratch);
  }
}

using Numbers = std::vector<int64_t>;

// Shape and element strides of the images; height and width of the views. Outputs are dense and channels-last.
// strong and strong_out may be 0.
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

// Unpacks an image into the float tile that views sample: padded, in [0, 1], held in cache, and shrunk on the way if needed.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "common.h"
#include "views.h"

namespace ptgm::views {

typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));

struct Image {
  const void* data;
  int64_t stride_c, stride_h, stride_w;
};

// F.interpolate's antialiased bilinear weights along an axis: output i is the weighted sum of the `num` inputs that start
// at `first[i]`. `num` is the same for all outputs, so that the branches of loops over them are predicted.
struct Taps {
  int num = 1;
  std::vector<int> first;
  std::vector<float> weights;

  Taps(int in, int out) : first(out) {
    // A triangle filter that extends one step to each side; without shrinking it reaches no neighbor.
    const double step = static_cast<double>(in) / out;
    std::vector<int> end(out);
    for (int i = 0; i < out; ++i) {
      const double centre = step * (i + 0.5);
      first[i] = in == out ? i : std::max(0, static_cast<int>(centre - step + 0.5));
      end[i] = in == out ? i + 1 : std::min(in, static_cast<int>(centre + step + 0.5));
      num = std::max(num, end[i] - first[i]);
    }
    weights.resize(static_cast<size_t>(out) * num);
    for (int i = 0; i < out; ++i) {
      const int start = std::min(first[i], in - num);
      const auto weight = [&](int k) { return std::max(0.0, 1.0 - std::abs(k + 0.5 - step * (i + 0.5)) / step); };
      double sum = 0.0;
      for (int k = first[i]; k < end[i]; ++k) sum += weight(k);
      float* to = weights.data() + static_cast<size_t>(i) * num - start;
      for (int k = first[i]; k < end[i]; ++k) to[k] = static_cast<float>(weight(k) / sum);
      first[i] = start;
    }
  }

  const float* of(int i) const { return weights.data() + static_cast<size_t>(i) * num; }
};

struct Shrink {
  Taps y, x;

  explicit Shrink(const Sizes& s) : y(s.image.height, s.in.height), x(s.image.width, s.in.width) {}
};

// One thread's buffers. A colour pixel of the tile has four floats, the last unused, so that two horizontal
// neighbors are one 32-byte load.
struct Scratch {
  int row;
  std::unique_ptr<float[]> tile, line, sums, weight_x, weight_y;
  std::unique_ptr<int[]> index;

  explicit Scratch(const Sizes& s)
      : row((s.in.width + 3) * (s.in.channels == 1 ? 1 : 4)),
        tile(new float[static_cast<size_t>(s.in.height + 3) * row]),
        line(new float[4 * static_cast<size_t>(std::max(s.image.width, s.out.width)) + 8]()),
        sums(new float[3 * static_cast<size_t>(s.image.width) + 8]()),
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

// Weighted sums over `count` rows, `stride` elements apart, of `values` columns, `step` elements apart.
template <class T>
INLINE void sum_rows(const T* rows, int64_t stride, int64_t step, const float* weights, int count, int values,
                     float* __restrict sums) {
  std::fill_n(sums, values, 0.0f);
  int tap = 0;
  // Four rows at a time, since every pass loads and stores the sums.
  for (; step == 1 && tap + 3 < count; tap += 4, rows += 4 * stride) {
    const T *a = rows, *b = a + stride, *c = b + stride, *d = c + stride;
    const float* w = weights + tap;
    const float wa = w[0], wb = w[1], wc = w[2], wd = w[3];
    for (int k = 0; k < values; ++k)
      sums[k] += wa * to_float(a[k]) + wb * to_float(b[k]) + (wc * to_float(c[k]) + wd * to_float(d[k]));
  }
  for (; tap < count; ++tap, rows += stride) {
    const float weight = weights[tap];
    if (step == 1) {
      for (int k = 0; k < values; ++k) sums[k] += weight * to_float(rows[k]);
    } else {
      for (int k = 0; k < values; ++k) sums[k] += weight * to_float(rows[k * step]);
    }
  }
}

// The weights sum to 1, so values can be mapped to [0, 1] after they are summed.
template <class T, class V>
INLINE V unit_of_sum(const V& sum) {
  if constexpr (std::is_same_v<T, uint8_t>)
    return sum / 255.0f;
  else
    return (sum + 1.0f) * 0.5f;
}

// Like `unpack`, for an image larger than the tile: sums rows first, which vectorizes in any layout, then columns.
template <class T>
INLINE void shrink_into_tile(const Image& image, const Sizes& sizes, const Shrink& shrink, Scratch& s) {
  const T* data = static_cast<const T*>(image.data);
  const int width = sizes.image.width, channels = sizes.in.channels;
  const bool interleaved = channels == 1 || (image.stride_c == 1 && image.stride_w == 3);
  const int planes = image.stride_c == 0 ? 1 : 3;
  float *sums = s.sums.get(), *line = s.line.get();
  for (int i = 0; i < sizes.in.height; ++i) {
    const T* rows = data + shrink.y.first[i] * image.stride_h;
    const float* weights = shrink.y.of(i);
    const int count = shrink.y.num;
    float* row = s.tile.get() + static_cast<size_t>(i + 1) * s.row;
    if (interleaved) {
      const int64_t step = channels == 1 ? image.stride_w : 1;
      sum_rows(rows, image.stride_h, step, weights, count, width * channels, sums);
    } else {
      for (int c = 0; c < planes; ++c)
        sum_rows(rows + c * image.stride_c, image.stride_h, image.stride_w, weights, count, width, sums + c * width);
      const float *r = sums, *g = sums + (planes == 1 ? 0 : width), *b = sums + (planes == 1 ? 0 : 2 * width);
      for (int j = 0; j < width; ++j) store(line + 4 * j, f4{r[j], g[j], b[j], 0.0f});
    }
    const float* from = interleaved ? sums : line;
    const int pixel = channels == 1 ? 1 : interleaved ? 3 : 4, taps = shrink.x.num;
    for (int j = 0; j < sizes.in.width; ++j) {
      const float* at = from + shrink.x.first[j] * pixel;
      const float* weight = shrink.x.of(j);
      if (channels == 1) {
        float sum = 0.0f;
        for (int k = 0; k < taps; ++k) sum += weight[k] * at[k];
        row[1 + j] = unit_of_sum<T>(sum);
      } else {
        f4 sum = {}, value;
        for (int k = 0; k < taps; ++k) {
          load(value, at + k * pixel);
          sum += weight[k] * value;
        }
        store(row + 4 + 4 * j, unit_of_sum<T>(sum));
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

}  // namespace ptgm::views

// The per-pixel operations of a view, on values in [0, 1]; views.cpp uses them on every instruction set.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstdint>

#include "common.h"

namespace ptgm::views {

// The layout of a parameter row is documented in kernels/views/parameters.
constexpr int kNumParameters = 24;

struct Size {
  int channels, height, width;
};

// The sizes of an image, of its views (`out`), and of what the map samples (`in`): the image with any side longer than the
// views' shortened to theirs. scale: pixels of `in` per pixel of a view, exactly 1 where the sides are equal.
struct Sizes {
  Size image, in, out;
  float scale_y, scale_x;

  Sizes(Size image, Size view)
      : image(image),
        in{image.channels, std::min(image.height, view.height), std::min(image.width, view.width)},
        out(view),
        scale_y(static_cast<float>(static_cast<double>(in.height) / view.height)),
        scale_x(static_cast<float>(static_cast<double>(in.width) / view.width)) {}

  bool shrinks() const { return image.height != in.height || image.width != in.width; }
  bool grows() const { return in.height != out.height || in.width != out.width; }
};

struct Geometry {
  float ax, bx, cx, ay, by, cy;
};

struct Pointwise {
  float levels, threshold, fill;
  float top, left, side;
};

// A position in the image padded by one pixel before and two after: integer part and the weight of the next pixel.
struct Tap {
  int index;
  float weight;
};

INLINE Geometry geometry(const float* row) { return {row[0], row[1], row[2], row[3], row[4], row[5]}; }

INLINE Pointwise pointwise(const float* row) {
  return {row[18], row[19], (row[23] + 1.0f) * 0.5f, row[20], row[21], row[22]};
}

// Map bytes, and generator outputs in [-1, 1], to [0, 1].
INLINE float unit(uint8_t value) { return static_cast<float>(value) / 255.0f; }
INLINE float unit(float value) { return (value + 1.0f) * 0.5f; }
INLINE float unit(bf16 value) { return unit(to_float(value)); }
INLINE float unit(f16 value) { return unit(to_float(value)); }

// The offset of pixel i of `size` from the centre.
INLINE float from_centre(int i, int size) { return static_cast<float>(i) - 0.5f * static_cast<float>(size - 1); }

// Converts an offset in pixels of the enlarged image to one in pixels of the image. The last half pixel of the image
// repeats its border; beyond it, the fill is reached within one pixel of the enlarged image, as without scaling.
INLINE float scaled(float offset, float scale, int in, int out) {
  const float edge = 0.5f * static_cast<float>(in - 1), far = 0.5f * static_cast<float>(out - 1);
  float within = offset > -far ? offset : -far;
  within = within < far ? within : far;
  float inside = within * scale;
  inside = inside > -edge ? inside : -edge;
  inside = inside < edge ? inside : edge;
  return inside + (offset - within);
}

// Everything outside the image is fill, so positions are clamped to the padding just outside it: [-1, size].
// The comparisons send NaN there too, which keeps every access inside the padded image.
INLINE Tap tap(float offset, int size) {
  float padded = offset + 0.5f * static_cast<float>(size - 1) + 1.0f;
  const float last = static_cast<float>(size + 1);
  padded = padded > 0.0f ? padded : 0.0f;
  padded = padded < last ? padded : last;
  const int index = static_cast<int>(padded);
  return {index, padded - static_cast<float>(index)};
}

template <class T, class S>
INLINE T lerp(T a, T b, S weight) {
  return a + weight * (b - a);
}

// NaN passes through: a diverged generator must not look like a valid image.
INLINE float clip(float u) {
  u = 0.0f > u ? 0.0f : u;
  return 1.0f < u ? 1.0f : u;
}

// `levels` is 2^bits, or 0 for off. Branch-free, so that a loop over pixels vectorizes; NaN passes through.
INLINE float posterize(float u, float levels) {
  const float lowered = floorf(u * levels), highest = levels - 1.0f;
  const float kept = (highest < lowered ? highest : lowered) * (1.0f / levels);
  return levels > 0.0f ? kept : u;
}

INLINE float solarize(float u, float threshold) { return u >= threshold ? 1.0f - u : u; }

// The steps that follow the colour matrix.
INLINE float finish(float u, const Pointwise& p) { return solarize(posterize(clip(u), p.levels), p.threshold); }

}  // namespace ptgm::views

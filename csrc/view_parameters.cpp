// One packed parameter row per sample, from its uniform numbers. The layout and the meaning of the ranges are those of
// kernels/views/parameters. As there, discrete decisions are computed in float, the rest in double and rounded once.
#include <pybind11/stl.h>

#include <cmath>
#include <vector>

#include "common.h"
#include "views.h"

namespace ptgm::views {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr int kOperations = 10, kFirstKey = 14;
enum Operation { kTranslate, kRotate, kScale, kShear, kBrightness, kContrast, kSaturation, kHue, kPosterize, kSolarize };

struct Ranges {
  double flip, translate, rotate, scale_low, scale_high, shear, brightness, contrast, saturation, hue, bits, solarize,
      cutout, fill, num_ops, candidate[kOperations];
};

// Chooses the num_ops candidates with the largest keys, the first on ties.
void choose(const float* u, const Ranges& r, bool* chosen) {
  std::fill_n(chosen, kOperations, true);
  if (r.num_ops == 0.0) return;
  float keys[kOperations];
  for (int k = 0; k < kOperations; ++k) keys[k] = r.candidate[k] > 0.0 ? u[kFirstKey + k] : -1.0f;
  for (int k = 0; k < kOperations; ++k) {
    int before = 0;
    for (int other = 0; other < kOperations; ++other)
      before += keys[other] > keys[k] || (keys[other] == keys[k] && other < k);
    chosen[k] = before < static_cast<int>(r.num_ops);
  }
}

// Rows of hue @ (luma + saturation (1 - luma)), times contrast and brightness, and the contrast's offset.
void colour(double brightness, double contrast, double saturation, double hue, float* out) {
  constexpr double kLuma[3] = {0.299, 0.587, 0.114};
  const double cos = std::cos(2 * kPi * hue), sin = std::sin(2 * kPi * hue) / std::sqrt(3.0);
  const double same = cos + (1 - cos) / 3, after = (1 - cos) / 3 - sin, before = (1 - cos) / 3 + sin;
  const double rotate[3][3] = {{same, after, before}, {before, same, after}, {after, before, same}};
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      double sum = 0.0;
      for (int k = 0; k < 3; ++k)
        sum += rotate[i][k] * (kLuma[j] + saturation * ((k == j ? 1.0 : 0.0) - kLuma[j]));
      out[4 * i + j] = static_cast<float>(sum * contrast * brightness);
    }
    out[4 * i + 3] = static_cast<float>(0.5 - 0.5 * contrast);
  }
}

void fill_row(const float* u, const Ranges& r, int channels, int height, int width, float* row) {
  bool chosen[kOperations];
  choose(u, r, chosen);
  const auto between = [&](int draw, double low, double high, Operation op, double identity) {
    return chosen[op] ? low + (high - low) * static_cast<double>(u[draw]) : identity;
  };
  const auto factor = [&](int draw, double change, Operation op) {
    return between(draw, std::max(0.0, 1.0 - change), 1.0 + change, op, 1.0);
  };
  const double tx = between(1, -r.translate * width, r.translate * width, kTranslate, 0.0);
  const double ty = between(2, -r.translate * height, r.translate * height, kTranslate, 0.0);
  const double angle = between(3, -r.rotate, r.rotate, kRotate, 0.0) * (kPi / 180);
  const double scale = between(4, r.scale_low, r.scale_high, kScale, 1.0);
  const double tan = std::tan(between(5, -r.shear, r.shear, kShear, 0.0) * (kPi / 180));
  const double cos = std::cos(angle), sin = std::sin(angle);
  const double a = (cos - sin * tan) / scale, b = (sin + cos * tan) / scale, c = -sin / scale, d = cos / scale;
  const double mirror = u[0] < static_cast<float>(r.flip) ? -1.0 : 1.0;
  const double affine[6] = {mirror * a, mirror * b, -mirror * (a * tx + b * ty), c, d, -(c * tx + d * ty)};
  std::copy_n(affine, 6, row);

  const double brightness = factor(6, r.brightness, kBrightness), contrast = factor(7, r.contrast, kContrast);
  if (channels == 3) {
    colour(brightness, contrast, factor(8, r.saturation, kSaturation), between(9, -r.hue, r.hue, kHue, 0.0), row + 6);
  } else {
    std::fill_n(row + 6, 12, 0.0f);
    row[6] = static_cast<float>(contrast * brightness);
    row[7] = static_cast<float>(0.5 - 0.5 * contrast);
  }

  const float fewest = static_cast<float>(r.bits);
  const float bits = std::min(std::floor(u[10] * (9.0f - fewest)), 8.0f - fewest) + fewest;
  row[18] = chosen[kPosterize] && bits < 8.0f ? std::exp2(bits) : 0.0f;
  row[19] = r.solarize > 0.0 ? static_cast<float>(between(11, 1.0 - r.solarize, 1.0, kSolarize, 2.0)) : 2.0f;
  const float side = static_cast<float>(std::floor(r.cutout * std::min(height, width) + 0.5));
  const float half = std::floor(side / 2);
  row[20] = std::min(std::floor(u[12] * static_cast<float>(height)), static_cast<float>(height - 1)) - half;
  row[21] = std::min(std::floor(u[13] * static_cast<float>(width)), static_cast<float>(width - 1)) - half;
  row[22] = side;
  row[23] = static_cast<float>(r.fill);
}

void view_parameters(uintptr_t numbers, int64_t stride, int64_t num, const std::vector<double>& ranges, int channels,
                     int height, int width, uintptr_t out) {
  Ranges r;
  if (ranges.size() * sizeof(double) != sizeof(r)) throw std::invalid_argument("a spec has 25 ranges");
  std::memcpy(&r, ranges.data(), sizeof(r));
  const float* u = pointer<const float>(numbers);
  float* rows = pointer<float>(out);
  for (int64_t n = 0; n < num; ++n) fill_row(u + n * stride, r, channels, height, width, rows + n * kNumParameters);
}

}  // namespace
}  // namespace ptgm::views

namespace ptgm {

PTGM_BIND(module) {
  module.def("view_parameters", &views::view_parameters);
}

}  // namespace ptgm

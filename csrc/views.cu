// Views in CUDA C++: one thread makes one pixel of both views, with the per-pixel functions of the CPU build. Built by
// `make cuda` into a library of its own that needs neither Python nor torch; the package does not need it.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "views.h"

namespace ptgm::views {
namespace {

constexpr int kThreads = 256;

VIEWS_INLINE float unit(__nv_bfloat16 value) { return views::unit(__bfloat162float(value)); }
VIEWS_INLINE float unit(__half value) { return views::unit(__half2float(value)); }
using views::unit;

VIEWS_INLINE void put(float* to, float value) { *to = value; }
VIEWS_INLINE void put(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }
VIEWS_INLINE void put(__half* to, float value) { *to = __float2half_rn(value); }

// Sizes in pixels, strides in elements, statistics per channel. strong and strong_out may be null.
struct Problem {
  const void* images;
  int64_t num, stride_n, stride_c, stride_h, stride_w;
  int channels, height, width;
  const float *weak, *strong;
  void *weak_out, *strong_out;
  float factor[3], offset[3];
};

VIEWS_INLINE bool in_cutout(const Pointwise& p, int i, int j) {
  const float y = static_cast<float>(i), x = static_cast<float>(j);
  return y >= p.top && y < p.top + p.side && x >= p.left && x < p.left + p.side;
}

// A pixel of the image continued by fill; positions are those of the padded image.
template <class T>
VIEWS_INLINE float fetch(const T* plane, const Problem& p, int row, int column, float fill) {
  const int i = row - 1, j = column - 1;
  const bool inside = i >= 0 && i < p.height && j >= 0 && j < p.width;
  return inside ? unit(plane[i * p.stride_h + j * p.stride_w]) : fill;
}

template <class T>
VIEWS_INLINE float sample(const T* plane, const Problem& p, Tap y, Tap x, float fill) {
  const float left = lerp(fetch(plane, p, y.index, x.index, fill), fetch(plane, p, y.index + 1, x.index, fill), y.weight);
  const float right =
      lerp(fetch(plane, p, y.index, x.index + 1, fill), fetch(plane, p, y.index + 1, x.index + 1, fill), y.weight);
  return lerp(left, right, x.weight);
}

template <int kChannels, class T, class O>
VIEWS_INLINE void pixel(const T* image, const float* row, const Problem& p, int i, int j, O* out) {
  const Geometry g = geometry(row);
  const Pointwise steps = pointwise(row);
  const float y = from_centre(i, p.height), x = from_centre(j, p.width);
  const Tap tap_x = tap(g.ax * x + g.bx * y + g.cx, p.width), tap_y = tap(g.ay * x + g.by * y + g.cy, p.height);
  float values[kChannels];
  for (int c = 0; c < kChannels; ++c) values[c] = sample(image + c * p.stride_c, p, tap_y, tap_x, steps.fill);
  const bool hole = in_cutout(steps, i, j);
  const float* matrix = row + 6;
  for (int c = 0; c < kChannels; ++c) {
    float u = matrix[c * (kChannels + 1) + kChannels];
    for (int k = 0; k < kChannels; ++k) u += matrix[c * (kChannels + 1) + k] * values[k];
    u = hole ? steps.fill : finish(u, steps);
    put(out + c, u * p.factor[c] + p.offset[c]);
  }
}

template <int kChannels, class T, class O>
__global__ void views_kernel(Problem p) {
  const int k = blockIdx.x * kThreads + threadIdx.x;
  if (k >= p.height * p.width) return;
  const int i = k / p.width, j = k % p.width;
  for (int64_t n = blockIdx.y; n < p.num; n += gridDim.y) {
    const T* image = static_cast<const T*>(p.images) + n * p.stride_n;
    const int64_t at = (n * p.height * p.width + k) * kChannels;
    pixel<kChannels>(image, p.weak + n * kNumParameters, p, i, j, static_cast<O*>(p.weak_out) + at);
    if (p.strong) pixel<kChannels>(image, p.strong + n * kNumParameters, p, i, j, static_cast<O*>(p.strong_out) + at);
  }
}

template <class T, class O>
void launch(const Problem& p, cudaStream_t stream) {
  constexpr int64_t kMostRows = 65535;
  const dim3 grid((p.height * p.width + kThreads - 1) / kThreads, static_cast<unsigned>(p.num < kMostRows ? p.num : kMostRows));
  if (p.channels == 1)
    views_kernel<1, T, O><<<grid, kThreads, 0, stream>>>(p);
  else
    views_kernel<3, T, O><<<grid, kThreads, 0, stream>>>(p);
}

template <class T>
const char* launch_output(const Problem& p, int output, cudaStream_t stream) {
  switch (output) {
    case 0:
      launch<T, float>(p, stream);
      break;
    case 1:
      launch<T, __nv_bfloat16>(p, stream);
      break;
    case 2:
      launch<T, __half>(p, stream);
      break;
    default:
      return "views: the output must be 0 (float32), 1 (bfloat16) or 2 (float16)";
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace
}  // namespace ptgm::views

// Both views of images [N, C, H, W], C 1 or 3, on the current device and `stream`; returns null, or what went wrong.
// input and output: 0 float32, 1 bfloat16, 2 float16, and for input 3 uint8. weak, strong: parameter rows [N, 24] as
// documented in kernels/views/parameters. Outputs are dense and channels-last. mean and std: C numbers in host
// memory; everything else is in device memory. strong and strong_out may be null.
extern "C" const char* ptgm_views_cuda(int input, const void* images, const int64_t* shape, const int64_t* strides,
                                       const float* weak, const float* strong, int output, void* weak_out,
                                       void* strong_out, const float* mean, const float* std, void* stream) {
  using namespace ptgm::views;
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (shape[1] != 1 && shape[1] != 3) return "views: images must have 1 or 3 channels";
  Problem p{images, shape[0], strides[0], strides[1], strides[2], strides[3], static_cast<int>(shape[1]),
            static_cast<int>(shape[2]), static_cast<int>(shape[3]), weak, strong, weak_out, strong_out, {}, {}};
  for (int c = 0; c < p.channels; ++c) {
    p.factor[c] = 1.0f / std[c];
    p.offset[c] = -mean[c] / std[c];
  }
  if (p.num == 0) return nullptr;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (input) {
    case 0:
      return launch_output<float>(p, output, on);
    case 1:
      return launch_output<__nv_bfloat16>(p, output, on);
    case 2:
      return launch_output<__half>(p, output, on);
    case 3:
      return launch_output<uint8_t>(p, output, on);
    default:
      return "views: the input must be 0 (float32), 1 (bfloat16), 2 (float16) or 3 (uint8)";
  }
}

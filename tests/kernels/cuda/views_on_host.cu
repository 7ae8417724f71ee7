// The pixel function of csrc/views.cu, run by the host: what a GPU's threads compute, without a GPU.
#include "views.cu"

extern "C" void views_on_host(const float* images, const int64_t* shape, const int64_t* strides, const float* rows,
                              float* out, const float* mean, const float* std) {
  using namespace ptgm::views;
  Problem p{};
  p.stride_n = strides[0], p.stride_c = strides[1], p.stride_h = strides[2], p.stride_w = strides[3];
  p.channels = static_cast<int>(shape[1]), p.height = static_cast<int>(shape[2]), p.width = static_cast<int>(shape[3]);
  for (int c = 0; c < p.channels; ++c) {
    p.factor[c] = 1.0f / std[c];
    p.offset[c] = -mean[c] / std[c];
  }
  for (int64_t n = 0; n < shape[0]; ++n) {
    const float *image = images + n * p.stride_n, *row = rows + n * kNumParameters;
    for (int i = 0; i < p.height; ++i) {
      for (int j = 0; j < p.width; ++j, out += p.channels) {
        if (p.channels == 1)
          pixel<1>(image, row, p, i, j, out);
        else
          pixel<3>(image, row, p, i, j, out);
      }
    }
  }
}

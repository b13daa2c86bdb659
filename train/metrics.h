// What an edited video is measured by, against its exact target (training specification, section 9.4).
//
// Videos are f32 [F, H, W, 3] in [0, 1]. A mask is f32 [F, H, W] in [0, 1]; it weighs pixels, so a soft mask
// counts its edge in part. "Outside" weighs by 1 - mask.
#pragma once

#include <optional>
#include <vector>

#include "tensor/tensor.h"

namespace rivulet {

// Root of the mean square difference over all values, or over the pixels of the mask.
double rmse(const Tensor& a, const Tensor& b);
// Empty when the mask is 0 everywhere.
std::optional<double> masked_rmse(const Tensor& a, const Tensor& b, const Tensor& mask);
// The same of every frame by itself; a frame whose mask is empty repeats the value before it (0 at first).
std::vector<double> rmse_per_frame(const Tensor& a, const Tensor& b, const Tensor& mask = {});

// 20 log10(1 / rmse) in dB; infinite for equal pictures.
double psnr(const Tensor& a, const Tensor& b);
// Of what the edit should not have touched; empty when the mask is 1 everywhere.
std::optional<double> psnr_outside(const Tensor& output, const Tensor& target, const Tensor& mask);

// Structural similarity of the luma (Wang et al. 2004) with flat 7x7 windows; 1 for equal pictures.
// Pictures smaller than the window use windows of their own size.
double ssim(const Tensor& a, const Tensor& b);

// Normalised edit score (E_copy - E) / (E_copy - floor): 1 is the exact edit, 0 is the unedited source.
// E and E_copy are masked_rmse of output and source to the target; `floor` is the error of the best
// possible output (an autoencoder's). Empty when there is nothing to edit: E_copy <= floor.
std::optional<double> edit_score(const Tensor& output, const Tensor& source, const Tensor& target,
                                 const Tensor& mask, double floor = 0);

// Flicker of frame t = 1 .. F-1: mean |(y_t - y_(t-1)) - (x_t - x_(t-1))|, F - 1 values.
std::vector<double> flicker(const Tensor& output, const Tensor& target);

// Mean flicker at the first frame of every chunk but the first, over the mean inside chunks. `chunks` are
// frame counts; the last one repeats to the end of the video. Empty without a boundary or without a pair
// of frames inside a chunk; 1 when there is no flicker at all.
std::optional<double> boundary_ratio(const std::vector<double>& flicker, const std::vector<int64_t>& chunks);

// Least-squares slope of an error over time, per 100 frames. Needs two values.
double drift_slope(const std::vector<double>& error_per_frame);

}  // namespace rivulet

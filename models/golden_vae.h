// The golden files of the video autoencoders (see models/golden.h, which calls these).
#pragma once

#include "models/golden.h"

namespace rivulet {

bool is_ltx2_vae_golden(const SafeTensors& file);
bool is_taeltx2_golden(const SafeTensors& file);
std::vector<GoldenRow> run_ltx2_vae_golden(const SafeTensors& file, Device device, DType dtype);
std::vector<GoldenRow> run_taeltx2_golden(const SafeTensors& file, Device device, DType dtype);

}  // namespace rivulet

// The two ways in which LTX-2's autoencoder is published: one folder, whose names are ours, and Lightricks'
// own single file, which counts blocks and samplers in one flat list (vae_text.md 1.1).
#pragma once

#include <map>

#include "tensor/weight_file.h"

namespace rivulet {

// The autoencoder's tensors under our names, whichever way the file has them. A leading "vae." goes, and with
// it whatever else a combined file holds. Lightricks' statistics that nothing reads are left out.
std::map<std::string, Tensor> ltx2_vae_tensors(const WeightFile& file);

// One of our names as Lightricks writes it, without "vae.".
std::string lightricks_vae_name(const std::string& name);

}  // namespace rivulet

// Files that come with the program.
#pragma once

#include <string>

namespace rivulet {

// The folder of a bundled model: models/NAME above the program in a source tree, or share/rivulet/models/NAME
// where it is installed. Throws when it is in neither place.
std::string bundled_model(const std::string& name = "brook");

}  // namespace rivulet

// The files of the page, inside the program: a request can name one of these paths and nothing else.
#pragma once

#include <span>
#include <string_view>

namespace rivulet::serve {

struct Asset {
  std::string_view path;  // "/app.js"
  std::string_view type;  // "text/javascript; charset=utf-8"
  std::string_view body;
};

// Made by the build from apps/serve/page and the bundled clip (/clip.mp4).
std::span<const Asset> page_assets();

}  // namespace rivulet::serve

// What a search found, on paper: files for machines and one page for people.
#pragma once

#include "quant/search.h"

namespace rivulet {

// policy.json (the chosen policy, its notes hold the figures), front.json (every policy of the front),
// result.json (all figures) and report.html (self-contained).
void write_results(const SearchResult& result, const std::string& dir);

Json to_json(const SearchResult& result);
std::string html_report(const SearchResult& result);

}  // namespace rivulet

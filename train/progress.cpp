#include "train/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <sstream>

namespace rivulet {
namespace {

constexpr double kRedrawSeconds = 0.1, kLogSeconds = 5;
constexpr int kBarWidth = 24;

// The terminal that a standard stream writes to, or -1: an ostream cannot be asked for its descriptor.
int terminal_of(const std::ostream& out) {
  int fd = -1;
  if (out.rdbuf() == std::cout.rdbuf()) fd = STDOUT_FILENO;
  if (out.rdbuf() == std::cerr.rdbuf()) fd = STDERR_FILENO;
  return fd >= 0 && isatty(fd) ? fd : -1;
}

size_t columns_of(int fd) {
  winsize size{};
  return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// Three significant digits, without an exponent for large rates.
std::string format_rate(double per_second) {
  char text[32];
  std::snprintf(text, sizeof text, per_second < 100 ? "%.3g" : "%.0f", per_second);
  return std::string(text) + "/s";
}

}  // namespace

std::string format_duration(double seconds) {
  const int64_t s = std::llround(std::clamp(seconds, 0.0, 1e9));
  char text[48];
  if (s >= 3600)
    std::snprintf(text, sizeof text, "%d:%02d:%02d", int(s / 3600), int(s / 60 % 60), int(s % 60));
  else
    std::snprintf(text, sizeof text, "%d:%02d", int(s / 60), int(s % 60));
  return text;
}

Progress::Progress(std::string label, int64_t total, std::ostream& out)
    : label_(std::move(label)), total_(std::max<int64_t>(total, 0)), out_(out), terminal_(terminal_of(out)) {
  begin_ = last_ = Clock::now();
}

Progress::~Progress() {
  if (line_open_) out_ << std::endl;
}

void Progress::start_at(int64_t done) { done_ = first_ = done; }

double Progress::seconds() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

double Progress::units_per_second() const {
  const double s = seconds();
  return done_ > first_ && s > 0 ? double(done_ - first_) / s : 0;
}

void Progress::update(int64_t done, const std::string& note) {
  done_ = done;
  if (finished_) return;
  const auto now = Clock::now();
  const double wait = terminal_ >= 0 ? kRedrawSeconds : kLogSeconds;
  if (std::chrono::duration<double>(now - last_).count() < wait) return;
  last_ = now;
  terminal_ >= 0 ? draw_bar(note) : write_line(note);
}

void Progress::draw_bar(const std::string& note) {
  const double rate = units_per_second();
  std::ostringstream text;
  text << label_ << ' ';
  if (total_ > 0) {
    const double part = std::clamp(double(done_) / double(total_), 0.0, 1.0);
    const int filled = int(part * kBarWidth);
    text << '[' << std::string(filled, '#') << std::string(kBarWidth - filled, '-') << "] ";
    text << int(part * 100) << "% " << done_ << '/' << total_;
  } else {
    text << done_;
  }
  text << "  " << format_rate(rate);
  if (total_ > 0 && rate > 0) text << "  ETA " << format_duration(double(total_ - done_) / rate);
  if (!note.empty()) text << "  " << note;
  std::string line = text.str();
  // A line that wraps could not be redrawn in place.
  const size_t columns = columns_of(terminal_);
  if (line.size() >= columns) line.resize(columns - 1);
  out_ << '\r' << line << "\033[K" << std::flush;
  line_open_ = true;
}

void Progress::write_line(const std::string& note) {
  const double rate = units_per_second();
  out_ << label_ << ": " << done_;
  if (total_ > 0) out_ << "/" << total_ << " (" << 100 * done_ / total_ << "%)";
  out_ << ", " << format_rate(rate);
  if (total_ > 0 && rate > 0) out_ << ", " << format_duration(double(total_ - done_) / rate) << " left";
  if (!note.empty()) out_ << ", " << note;
  out_ << std::endl;
}

void Progress::finish(const std::string& note) {
  if (finished_) return;
  finished_ = true;
  if (terminal_ >= 0) out_ << "\r\033[K";
  line_open_ = false;
  out_ << label_ << ": " << done_ << " in " << format_duration(seconds()) << " ("
       << format_rate(units_per_second()) << ")";
  if (!note.empty()) out_ << ", " << note;
  out_ << std::endl;
}

}  // namespace rivulet

// HK_CHECK(condition, parts...): throws one sentence, "op: argument must be ..., got ...".
#pragma once
#include <sstream>
#include <stdexcept>

#define HK_CHECK(condition, ...)                     \
  do {                                               \
    if (!(condition)) ::histokit::fail(__VA_ARGS__); \
  } while (0)

namespace histokit {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace histokit

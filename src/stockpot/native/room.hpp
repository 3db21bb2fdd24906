// Memory for a call, aligned as vectors like it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace stockpot {

struct Free { void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); } };
template <class T> using Room = std::unique_ptr<T[], Free>;
template <class T> Room<T> make_room(int64_t count) {
  return Room<T>(static_cast<T*>(::operator new(size_t(count) * sizeof(T) + 64, std::align_val_t(64))));
}

}  // namespace stockpot

// A team of threads that walks through one job together.
//
// A decode step has some 150 stages of a few microseconds each, so that waking threads for each of them would cost more
// than the work. The team is woken once a step; between stages its members spin for the moment it takes. Compiled with OpenMP its
// members are torch's threads: where calls and torch's own work take turns, two sets of threads would keep each other waiting.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace stockpot {

inline void breathe() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Team {
 public:
  // Spins at a meeting point before the processor is offered to others, who would keep it for longer than the wait takes: few
  // where members have to share processors, and wait for each other's.
  static constexpr int PATIENCE = 64000, LITTLE_PATIENCE = 4000;
  static constexpr std::chrono::microseconds IDLE{3000};  // an idle member sleeps after this: longer than Python takes
  static constexpr std::chrono::microseconds ALERT{1000};  // until then it holds its processor, later it offers it to others
  static constexpr int SPINS_A_LOOK = 64;    // spins between two looks at the clock

  // Runs of pieces a member takes in one stage, if all are equally fast: few where memory is read in sweeps, many where
  // members wait for the slowest.
  static constexpr int SWEEPS = 2, MANY = 8;

  explicit Team(int size)
      : wanted_(size), size_(size),
        patience_(unsigned(size) <= std::thread::hardware_concurrency() ? PATIENCE : LITTLE_PATIENCE), owner_(getpid()) {
#ifndef _OPENMP
    for (int i = 1; i < size; ++i) members_.emplace_back([this, i] { serve(i); });
#endif
  }

  ~Team() {
    if (owner_ != getpid()) {                // a forked child has the object but not the threads
      for (auto& one : members_) one.detach();
      return;
    }
    {
      std::lock_guard<std::mutex> hold(mutex_);
      leaving_ = true;
      orders_.fetch_add(1);
    }
    awake_.notify_all();
    for (auto& one : members_) one.join();
  }

  int size() const { return wanted_; }
  bool is_here() const { return owner_ == getpid(); }

  // Run job(member) on every member and return when all are done.
  void run(const std::function<void(int)>& job) {
    next_.store(0, std::memory_order_relaxed);
#ifdef _OPENMP
#pragma omp parallel num_threads(wanted_)
    {
#pragma omp single
      size_ = omp_get_num_threads();         // there may be fewer than were wanted
      job(omp_get_thread_num());
    }
    size_ = wanted_;
#else
    job_ = &job;
    if (size_ > 1) {
      std::lock_guard<std::mutex> hold(mutex_);
      orders_.fetch_add(1, std::memory_order_release);
      if (asleep_) awake_.notify_all();
    }
    job(0);
    meet();
#endif
  }

  // Wait until every member has come here; then pieces are counted from 0 again. Who waits does `idle` over and over.
  template <class F = void (*)()> void meet(F&& idle = breathe) {
    if (size_ == 1) {
      next_.store(0, std::memory_order_relaxed);
      return;
    }
    const int round = rounds_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      rounds_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; rounds_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < patience_) idle();
      else std::this_thread::yield();
    }
  }

  // Take the next of `count` pieces of the present stage, or -1 when none is left.
  int take(int count) {
    const int piece = next_.fetch_add(1, std::memory_order_relaxed);
    return piece < count ? piece : -1;
  }

  // Do something with each of `count` pieces. Runs of neighbours stay together, since memory is read faster in one sweep.
  // A member begins with its own run, so that it can ask for the memory of it beforehand, and then takes what is left.
  template <class F> void share(int member, int count, int sweeps, F&& each) {
    const int parts = std::min(count, sweeps * size_);
    for (int part = member; part < parts; part = size_ + next_.fetch_add(1, std::memory_order_relaxed))
      for (int i = int(int64_t(count) * part / parts); i < int(int64_t(count) * (part + 1) / parts); ++i) each(i);
  }

  // The piece that a member begins with in `share`.
  int begins(int member, int count, int sweeps) const {
    const int parts = std::min(count, sweeps * size_);
    return member < parts ? int(int64_t(count) * member / parts) : count;
  }

 private:
  void serve(int member) {
    int done = 0;
    for (;;) {
      wait_for(done);
      done = orders_.load(std::memory_order_acquire);
      if (leaving_) return;
      (*job_)(member);
      meet();
    }
  }

  void wait_for(int done) {
    const auto begin = std::chrono::steady_clock::now();
    for (auto idle = begin - begin; idle < IDLE; idle = std::chrono::steady_clock::now() - begin) {
      for (int spins = 0; spins < SPINS_A_LOOK; ++spins) {
        if (orders_.load(std::memory_order_acquire) != done) return;
        breathe();
      }
      if (idle > ALERT) std::this_thread::yield();
    }
    std::unique_lock<std::mutex> hold(mutex_);
    ++asleep_;
    awake_.wait(hold, [&] { return orders_.load(std::memory_order_acquire) != done; });
    --asleep_;
  }

  const int wanted_;
  int size_;
  const int patience_;
  const pid_t owner_;
  std::vector<std::thread> members_;
  const std::function<void(int)>* job_ = nullptr;
  std::mutex mutex_;
  std::condition_variable awake_;
  int asleep_ = 0;
  bool leaving_ = false;
  alignas(64) std::atomic<int> orders_{0};
  alignas(64) std::atomic<int> rounds_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> next_{0};
};

// One call at a time: they would only take each other's processors. These two are each library's own: of what is merely inline a
// process keeps one for all, and the libraries' teams are not alike.
static inline std::mutex& entrance() {
  static std::mutex one;
  return one;
}

static inline Team& team_of(int threads) {
  static std::unique_ptr<Team> team;
  if (team && !team->is_here()) team.release();  // after a fork the threads are elsewhere
  if (!team || team->size() != threads) {
    team.reset();
    team = std::make_unique<Team>(threads);
  }
  return *team;
}

}  // namespace stockpot

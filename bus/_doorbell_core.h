/* The doorbell's word in shared memory, and the sleep on it; nothing of Python. `doorbell.py` has the contract,
 * MEMORY_ORDER.md says why each of these orders. The word is armed or idle.
 */
#ifndef RINGLEADER_DOORBELL_CORE_H
#define RINGLEADER_DOORBELL_CORE_H

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <time.h>

#if defined(__linux__) && defined(__LP64__) && !defined(RINGLEADER_NO_FUTEX)
#define HAVE_FUTEX 1
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define IDLE ((uint32_t)0)
#define ARMED ((uint32_t)1)

/* From here on whoever rings will wake the sleep that follows. Look again before sleeping. */
static inline void bell_arm(uint32_t *word)
{
    __atomic_store_n(word, ARMED, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void bell_disarm(uint32_t *word) { __atomic_store_n(word, IDLE, __ATOMIC_SEQ_CST); }

static inline int bell_armed(const uint32_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE) == ARMED; }

/* After publishing: is somebody to be woken? By whoever is told so. */
static inline int bell_clear(uint32_t *word)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* what was published is visible before we look */
    return __atomic_load_n(word, __ATOMIC_RELAXED) == ARMED &&
           __atomic_exchange_n(word, IDLE, __ATOMIC_SEQ_CST) == ARMED;
}

/* Tells the processor that this is a loop that waits, so that the other thread of its core gets on. */
static inline void bell_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* The monotonic clock, in seconds. */
static inline double bell_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static inline struct timespec bell_span(double seconds)
{
    struct timespec span = {.tv_sec = (time_t)seconds};
    span.tv_nsec = (long)((seconds - (double)span.tv_sec) * 1e9);
    return span;
}

/* Sleeps while the word is armed, at most so long; a signal ends it early. 0 or an errno. Without a futex a signal that
 * comes between two short sleeps ends nothing: who waits longer than SLICE has to look for signals in between. */
#ifdef HAVE_FUTEX
#define SLICE 3600.0
static inline int bell_sleep(uint32_t *word, double seconds)
{
    struct timespec span = bell_span(seconds);
    /* Not FUTEX_PRIVATE_FLAG: the other side is another process. */
    if (syscall(SYS_futex, word, FUTEX_WAIT, ARMED, &span, NULL, 0) == 0 || errno == EAGAIN || errno == ETIMEDOUT)
        return 0;
    return errno;
}

static inline void bell_wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }
#else
#define SLICE 0.05
#define SHORT_SLEEP 0.0002
#define LONGEST_SLEEP 0.002

static inline int bell_sleep(uint32_t *word, double seconds)
{
    double pause = SHORT_SLEEP, until = bell_now() + seconds;
    while (bell_armed(word)) {
        double left = until - bell_now();
        if (left <= 0)
            break;
        struct timespec span = bell_span(left < pause ? left : pause);
        if (nanosleep(&span, NULL) != 0)
            return errno;
        pause = pause * 1.5 < LONGEST_SLEEP ? pause * 1.5 : LONGEST_SLEEP;
    }
    return 0;
}

static inline void bell_wake(uint32_t *word) { (void)word; } /* whoever sleeps briefly looks at the word himself */
#endif

#endif

/* One end of a ring: what it does to the shared memory, and nothing of Python. `ring.py` says what each step means,
 * `layout.py` shows the memory.
 *
 * What holds here:
 * - Shared cells are loaded with acquire and stored with release; records are written and read in between, plainly.
 *   MEMORY_ORDER.md says why each of them, and what breaks without.
 * - Every position and length that came out of shared memory is loaded once, checked, and only then used.
 * - What cannot be is left in `fault`; nothing has moved then.
 */
#ifndef RINGLEADER_RING_CORE_H
#define RINGLEADER_RING_CORE_H

#include <stddef.h>
#include <stdint.h>

/* From layout.py; a test compares them. */
enum {
    RING_VERSION = 1,
    HEADER_SIZE = 512,
    RECORD_HEADER = 8,
    WORD = 8,
    TAIL = 16,
    HEAD = 32,
    ACK = 33,
    RESEND_ASKED = 35,
    CELLS = HEADER_SIZE / WORD,
    KIND_RECORD = 1,
    KIND_PADDING = 2,
};
#define MIN_CAPACITY ((uint64_t)4096)
#define MAX_CAPACITY ((uint64_t)1 << 31)
#define POSITION_LIMIT ((uint64_t)1 << 63)

/* What a step came to; from RING_TOO_LARGE on down nothing has moved. */
enum { RING_OK = 1, RING_NO_ROOM = 0, RING_TOO_LARGE = -1, RING_DAMAGED = -2 };

typedef struct {
    uint64_t position, value;
    const char *reason;
} RingFault;

typedef struct {
    uint64_t *words; /* header and data as aligned words */
    uint8_t *data;
    uint64_t capacity, mask, max_record;
    uint64_t tail, head_seen; /* the producer's own tail, and the last head it saw */
    uint64_t head, cursor;    /* the consumer's own head and cursor */
    RingFault fault;
} RingEnd;

typedef struct {
    uint64_t kind;
    const uint8_t *payload;
    uint64_t length;
    uint64_t total; /* with its framing */
} RingItem;

static inline uint64_t ring_load(const RingEnd *end, ptrdiff_t cell)
{
    return __atomic_load_n(&end->words[cell], __ATOMIC_ACQUIRE);
}

static inline void ring_store(RingEnd *end, ptrdiff_t cell, uint64_t value)
{
    __atomic_store_n(&end->words[cell], value, __ATOMIC_RELEASE);
}

static inline uint64_t ring_framed(uint64_t size)
{
    return (RECORD_HEADER + size + WORD - 1) & ~(uint64_t)(WORD - 1);
}

static inline int ring_damaged(RingEnd *end, uint64_t position, uint64_t value, const char *reason)
{
    end->fault = (RingFault){position, value, reason};
    return RING_DAMAGED;
}

static inline int ring_position(RingEnd *end, ptrdiff_t cell, uint64_t *position)
{
    *position = ring_load(end, cell);
    if (*position < POSITION_LIMIT && *position % WORD == 0)
        return RING_OK;
    return ring_damaged(end, 0, *position,
                        cell == HEAD ? "the head is not a position" : "the tail is not a position");
}

/* `memory` is a formatted ring, aligned to words, of a capacity that was checked. */
static inline int ring_attach(RingEnd *end, void *memory, uint64_t capacity)
{
    end->words = memory;
    end->data = (uint8_t *)memory + HEADER_SIZE;
    end->capacity = capacity;
    end->mask = capacity - 1;
    end->max_record = capacity / 2 - RECORD_HEADER;
    if (ring_position(end, HEAD, &end->head) < 0 || ring_position(end, TAIL, &end->tail) < 0)
        return RING_DAMAGED;
    end->cursor = end->head;
    end->head_seen = end->tail - capacity; /* as if full: the first push looks at the head */
    return RING_OK;
}

/* ---- the producer's end ------------------------------------------------------------------------------------------ */

/* Where a record of `size` goes when the tail is `tail`; header and padding are written, behind the tail. */
static inline int ring_place(RingEnd *end, uint64_t tail, uint64_t size, uint64_t *start)
{
    if (size > end->max_record)
        return RING_TOO_LARGE;
    uint64_t index = tail & end->mask;
    uint64_t left = end->capacity - index;
    uint64_t total = ring_framed(size);
    uint64_t skip = left < total ? left : 0;
    uint64_t after = tail + skip + total;
    if (after - end->head_seen > end->capacity) {
        uint64_t head;
        if (ring_position(end, HEAD, &head) < 0)
            return RING_DAMAGED;
        if (head > end->tail || end->tail - head > end->capacity)
            return ring_damaged(end, end->tail, head, "the head is not within one capacity of the tail");
        end->head_seen = head;
        if (after - head > end->capacity)
            return RING_NO_ROOM;
    }
    if (skip != 0) {
        end->words[CELLS + index / WORD] = (skip - RECORD_HEADER) | (uint64_t)KIND_PADDING << 32;
        index = 0;
    }
    end->words[CELLS + index / WORD] = size | (uint64_t)KIND_RECORD << 32;
    *start = tail + skip;
    return RING_OK;
}

static inline uint8_t *ring_payload(const RingEnd *end, uint64_t start)
{
    return end->data + (start & end->mask) + RECORD_HEADER;
}

/* All that was written before `tail` becomes visible. */
static inline void ring_publish(RingEnd *end, uint64_t tail)
{
    end->tail = tail;
    ring_store(end, TAIL, tail);
}

/* ---- the consumer's end ------------------------------------------------------------------------------------------ */

static inline int ring_tail(RingEnd *end, uint64_t *tail)
{
    if (ring_position(end, TAIL, tail) < 0)
        return RING_DAMAGED;
    if (end->cursor <= *tail && *tail - end->head <= end->capacity)
        return RING_OK;
    return ring_damaged(end, end->cursor, *tail, "the tail is not within one capacity of the head");
}

/* What is wrong with the header `word` at `index`, given that something is. */
static inline int ring_bad_header(RingEnd *end, uint64_t cursor, uint64_t word)
{
    uint64_t kind = word >> 32, length = word & UINT32_MAX, index = cursor & end->mask;
    if (kind != KIND_RECORD && kind != KIND_PADDING)
        return ring_damaged(end, cursor, kind, "unknown kind of record");
    if (kind == KIND_PADDING && index + RECORD_HEADER + length != end->capacity)
        return ring_damaged(end, cursor, length, "padding does not end where the data ends");
    if (kind == KIND_RECORD && length > end->max_record)
        return ring_damaged(end, cursor, length, "the record is longer than the limit");
    if (kind == KIND_RECORD && index + ring_framed(length) > end->capacity)
        return ring_damaged(end, cursor, length, "the record runs past the end of the data");
    return ring_damaged(end, cursor, length, "the record runs past the tail");
}

/* The record or the padding at `cursor`, which is before `tail`. */
static inline int ring_item(RingEnd *end, uint64_t cursor, uint64_t tail, RingItem *item)
{
    uint64_t index = cursor & end->mask;
    uint64_t word = end->words[CELLS + index / WORD]; /* loaded once: it may be changing */
    uint64_t length = word & UINT32_MAX, total = ring_framed(length);
    item->kind = word >> 32;
    item->payload = end->data + index + RECORD_HEADER;
    item->length = length;
    item->total = total;
    if (item->kind == KIND_RECORD && length <= end->max_record && index + total <= end->capacity &&
        total <= tail - cursor)
        return RING_OK;
    if (item->kind == KIND_PADDING && index + total == end->capacity && length % WORD == 0 && total <= tail - cursor)
        return RING_OK;
    return ring_bad_header(end, cursor, word);
}

/* What was taken may be overwritten from now on. */
static inline void ring_release(RingEnd *end)
{
    end->head = end->cursor;
    ring_store(end, HEAD, end->head);
}

static inline void ring_rewind(RingEnd *end) { end->cursor = end->head; }

/* ---- an observer ------------------------------------------------------------------------------------------------- */

/* Bytes between head and tail. To an observer the tail may have moved on since the head was read. */
static inline int ring_used(RingEnd *end, uint64_t *used)
{
    uint64_t head, tail;
    if (ring_position(end, HEAD, &head) < 0 || ring_position(end, TAIL, &tail) < 0)
        return RING_DAMAGED;
    if (tail < head)
        return ring_damaged(end, head, tail, "the tail is before the head");
    *used = tail - head < end->capacity ? tail - head : end->capacity;
    return RING_OK;
}

#endif

/* The core of the C ring with two threads for two processes, for the thread sanitizer: all ways to push and to take,
 * through wrap-around, asleep on the doorbells in between. `tests/bus/tsan.py` compiles and runs it.
 *
 * Status 0: RECORDS records came whole and in order; 1: they did not; 3: a wake-up was lost. The sanitizer has its own.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "_doorbell_core.h"
#include "_ring_core.h"

enum { WRONG = 1, LOST_WAKE_UP = 3, CAPACITY = 4096, LARGEST = 300 };
#define PATIENCE 10.0

static _Alignas(128) uint8_t memory[HEADER_SIZE + CAPACITY];
static _Alignas(128) uint32_t consumer_bell, producer_bell;
static uint64_t records;

static void fail(int status, const char *what, uint64_t serial)
{
    fprintf(stderr, "%s at record %llu\n", what, (unsigned long long)serial);
    _exit(status);
}

/* Both sides know what record `serial` is. */
static uint64_t noise(uint64_t serial)
{
    serial = (serial ^ serial >> 31) * 0x9E3779B97F4A7C15u;
    return serial ^ serial >> 29;
}

static uint64_t size_of(uint64_t serial) { return noise(serial) % LARGEST; }

static void fill(uint8_t *payload, uint64_t serial) { memset(payload, (int)(noise(serial) >> 32 & 0xFF), size_of(serial)); }

static int is_whole(const uint8_t *payload, uint64_t length, uint64_t serial)
{
    uint8_t expected[LARGEST];
    fill(expected, serial);
    return length == size_of(serial) && memcmp(payload, expected, length) == 0;
}

/* Arm, look again, sleep, disarm. `ready` is asked on this side's own end. */
static void wait_for(uint32_t *bell, int (*ready)(RingEnd *), RingEnd *end, uint64_t serial)
{
    while (!ready(end)) {
        bell_arm(bell);
        if (!ready(end)) {
            struct timespec start, now;
            clock_gettime(CLOCK_MONOTONIC, &start);
            while (bell_armed(bell)) {
                bell_sleep(bell, PATIENCE);
                clock_gettime(CLOCK_MONOTONIC, &now);
                if (bell_armed(bell) && (double)(now.tv_sec - start.tv_sec) >= PATIENCE)
                    fail(LOST_WAKE_UP, ready(end) ? "lost wake-up" : "nothing came", serial);
            }
        }
        bell_disarm(bell);
    }
}

static void ring_bell(uint32_t *bell)
{
    if (bell_clear(bell))
        bell_wake(bell);
}

static int has_room(RingEnd *end)
{
    uint64_t used;
    return ring_used(end, &used) == RING_OK && end->capacity - used >= 2 * ring_framed(LARGEST);
}

static int has_records(RingEnd *end)
{
    uint64_t tail;
    return ring_tail(end, &tail) == RING_OK && tail != end->cursor;
}

static void *produce(void *unused)
{
    RingEnd end;
    uint64_t serial = 0;
    if (ring_attach(&end, memory, CAPACITY) != RING_OK)
        fail(WRONG, "not a ring", 0);
    while (serial < records) {
        uint64_t tail = end.tail, start, many = 1 + noise(serial ^ 77) % 8; /* visible together */
        uint64_t batch = serial;
        for (; batch < records && batch < serial + many; batch++) {
            int step = ring_place(&end, tail, size_of(batch), &start);
            if (step == RING_NO_ROOM)
                break;
            if (step != RING_OK)
                fail(WRONG, "cannot be placed", batch);
            fill(ring_payload(&end, start), batch);
            tail = start + ring_framed(size_of(batch));
        }
        if (batch == serial) {
            wait_for(&producer_bell, has_room, &end, serial);
            continue;
        }
        serial = batch;
        ring_publish(&end, tail);
        ring_bell(&consumer_bell);
    }
    return unused;
}

static void *consume(void *unused)
{
    RingEnd end;
    uint64_t serial = 0, tail;
    if (ring_attach(&end, memory, CAPACITY) != RING_OK)
        fail(WRONG, "not a ring", 0);
    while (serial < records) {
        uint64_t first = serial, most = 1 + noise(serial ^ 99) % 12;
        int again = noise(serial ^ 55) % 5 == 0; /* take it twice */
        if (ring_tail(&end, &tail) != RING_OK)
            fail(WRONG, end.fault.reason, serial);
        while (end.cursor < tail && serial < first + most) {
            RingItem item;
            uint8_t copy[LARGEST];
            if (ring_item(&end, end.cursor, tail, &item) != RING_OK)
                fail(WRONG, end.fault.reason, serial);
            end.cursor += item.total;
            if (item.kind != KIND_RECORD)
                continue;
            if (item.length >= LARGEST)
                fail(WRONG, "longer than any", serial);
            memcpy(copy, item.payload, item.length);
            if (!is_whole(copy, item.length, serial))
                fail(WRONG, "not whole", serial);
            serial++;
        }
        if (again && serial != first) {
            ring_rewind(&end);
            serial = first;
            most = 1;
            RingItem item;
            while (ring_item(&end, end.cursor, tail, &item) == RING_OK && item.kind != KIND_RECORD)
                end.cursor += item.total;
            if (!is_whole(item.payload, item.length, serial))
                fail(WRONG, "not whole the second time", serial);
            end.cursor += item.total;
            serial++;
        }
        ring_release(&end);
        ring_bell(&producer_bell);
        if (serial == first)
            wait_for(&consumer_bell, has_records, &end, serial);
    }
    return unused;
}

int main(int count, char **arguments)
{
    pthread_t producer, consumer;
    records = count > 1 ? strtoull(arguments[1], NULL, 10) : 100000;
    if (pthread_create(&producer, NULL, produce, NULL) != 0 || pthread_create(&consumer, NULL, consume, NULL) != 0)
        return WRONG;
    pthread_join(producer, NULL);
    pthread_join(consumer, NULL);
    printf("%llu records\n", (unsigned long long)records);
    return 0;
}

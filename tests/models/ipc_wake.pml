/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The wake protocol of the ipc provider (csrc/ipc_ring.h, "Waking") as a Promela model: one ring, a
 * producer, a consumer, both of which sleep when they can't go on. Each statement is one seq_cst load
 * or store of a shared word. A lost wake-up is a state in which nobody can move: spin calls it an
 * invalid end state.
 *
 *     spin -a ipc_wake.pml && cc -o pan pan.c && ./pan        no errors
 *
 * With -DLOOK_FIRST a side looks before it says that it sleeps, with -DTELL_FIRST it tells before it
 * publishes: then spin finds the lost wake-up, so the model is able to. tests/unit/test_models.py runs
 * all of them. */

#define SLOTS 2
#define COUNT 5
#define ARRIVAL 1
#define ROOM 2

byte tail, head;             /* published by the producer; given back by the consumer */
byte consumer_wake, producer_wake; /* `wake` in the inbox of each */
bool consumer_bell, producer_bell; /* a message lies in the socket of each */

/* ipc_take_wake() and the message: a load; if it has the bit, an exchange; if that found any, the bell. */
inline ring(wake, what, bell) {
    if
    :: (wake & what) ->
        atomic { taken = wake; wake = 0 }
        if
        :: taken -> bell = true
        :: else
        fi
    :: else
    fi;
    taken = 0
}

active proctype producer() {
    byte sent, taken;
    do
    :: sent == COUNT -> break
    :: sent < COUNT ->
        if
        :: sent - head < SLOTS ->
#ifdef TELL_FIRST
            ring(consumer_wake, ARRIVAL, consumer_bell);
            sent++;
            tail = sent
#else
            sent++;
            tail = sent;
            ring(consumer_wake, ARRIVAL, consumer_bell)
#endif
        :: else ->
#ifndef LOOK_FIRST
            producer_wake = ARRIVAL | ROOM;
#endif
            if
            :: sent - head < SLOTS
            :: else ->
#ifdef LOOK_FIRST
                producer_wake = ARRIVAL | ROOM;
#endif
                producer_bell;
                producer_bell = false
            fi;
            producer_wake = 0
        fi
    od
}

active proctype consumer() {
    byte taken, got;
    do
    :: got == COUNT -> break
    :: got < COUNT ->
        if
        :: got < tail ->
            got++;
            /* it may take more before it gives back, as poll() does */
            do
            :: got < tail -> got++
            :: break
            od;
#ifdef TELL_FIRST
            ring(producer_wake, ROOM, producer_bell);
            head = got
#else
            head = got;
            ring(producer_wake, ROOM, producer_bell)
#endif
        :: else ->
#ifndef LOOK_FIRST
            consumer_wake = ARRIVAL;
#endif
            if
            :: got < tail
            :: else ->
#ifdef LOOK_FIRST
                consumer_wake = ARRIVAL;
#endif
                consumer_bell;
                consumer_bell = false
            fi;
            consumer_wake = 0
        fi
    od
}

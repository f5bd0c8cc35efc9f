// The script of the console page. It puts pieces of HTML, rendered by the node,
// into place; it knows nothing of operations. Everything but what is live works
// without it.
'use strict';
(() => {
  const $ = (q, root = document) => root.querySelector(q);
  const $$ = (q, root = document) => [...root.querySelectorAll(q)];
  const main = $('#main'), form = $('#prompt'), line = $('#line'), link = $('#link');

  // html makes nodes of a piece that the node rendered.
  const html = text => {
    const t = document.createElement('template');
    t.innerHTML = text;
    localTimes(t.content);
    return t.content;
  };

  // Times come in UTC, and are shown in the zone of the visitor.
  const clock = new Intl.DateTimeFormat([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
  const day = new Intl.DateTimeFormat([], { year: 'numeric', month: '2-digit', day: '2-digit' });
  const full = new Intl.DateTimeFormat([], { dateStyle: 'medium', timeStyle: 'long', hourCycle: 'h23' });
  const localTimes = root => {
    for (const t of $$('time[datetime]', root)) {
      const at = new Date(t.dateTime);
      if (isNaN(at)) continue;
      const today = day.format(at) === day.format(new Date());
      t.textContent = t.dataset.form === 'clock' || today ? clock.format(at) : day.format(at) + ' ' + clock.format(at);
      t.title = full.format(at);
    }
  };
  localTimes(document);

  const toLogin = () => { location.href = '/login?to=' + encodeURIComponent(location.pathname + location.search); };

  const banner = (text, kind = 'bad') => {
    if (link.textContent === text) return;
    link.replaceChildren();
    if (!text) return;
    const p = document.createElement('p');
    p.className = 'banner ' + kind;
    p.textContent = text;
    link.append(p);
  };

  // ---- what is live ----

  // live follows a stream of events and does not lose its place: it begins again
  // after the event that was seen last, also when the browser gives up, the
  // network swallows the connection, or the page was in the background.
  const live = (path, on, { after = '', state = () => {} } = {}) => {
    let source, heard, timer, wait = 500, over = false, hidden;
    const silent = 15000; // three beats
    const open = () => {
      close();
      if (over) return;
      heard = Date.now();
      source = new EventSource(path + (after ? (path.includes('?') ? '&' : '?') + 'after=' + encodeURIComponent(after) : ''));
      const take = (kind, f) => source.addEventListener(kind, e => {
        heard = Date.now();
        if (e.lastEventId) after = e.lastEventId;
        if (f) f(e.data, e.lastEventId);
      });
      take('hello', d => { wait = 500; state(true, d); });
      take('beat');
      take('gone', () => { over = true; close(); toLogin(); });
      for (const [kind, f] of Object.entries(on)) take(kind, f);
      take('end', d => { over = true; close(); state(true); if (on.over) on.over(d); });
      source.onerror = () => { state(false); again(); };
    };
    const close = () => { clearTimeout(timer); if (source) source.close(); source = null; };
    const again = () => {
      close();
      if (over || document.hidden && hidden) return;
      timer = setTimeout(async () => {
        // An event stream does not tell why it failed.
        try {
          const r = await fetch('/complete?line=', { headers: { 'X-Piece': '1' } });
          if (r.status === 401) return toLogin();
        } catch { /* not reachable yet */ }
        open();
      }, wait);
      wait = Math.min(wait * 2, 8000);
    };
    setInterval(() => {
      if (source && Date.now() - heard > silent) { state(false); again(); }
    }, 1000);
    // A page in the background gives its connection back after a while: browsers
    // allow few to one node.
    document.addEventListener('visibilitychange', () => {
      clearTimeout(hidden);
      hidden = 0;
      if (document.hidden) hidden = setTimeout(close, 60000);
      else if (!source) { wait = 500; open(); }
    });
    addEventListener('online', () => { wait = 500; if (!over) open(); });
    addEventListener('pagehide', close);
    open();
  };

  let lostAt = 0, telling = 0;
  const connection = (up, node) => {
    if (up) {
      lostAt = 0;
      banner('');
      document.body.classList.remove('lost');
      if (node && $('.where')) $('.where').textContent = node;
    } else if (!lostAt) {
      lostAt = Date.now();
      document.body.classList.add('lost');
      tellLost();
    }
  };
  const tellLost = () => {
    clearTimeout(telling);
    if (!lostAt) return;
    const s = Math.round((Date.now() - lostAt) / 1000);
    banner('connection lost ' + (s < 2 ? '' : 'for ' + s + ' s ') + '— what stands here is that old; connecting again');
    telling = setTimeout(tellLost, 1000);
  };

  // A piece is replaced under nobody's hands: what has the focus keeps it, and a
  // selection is left alone.
  const swap = (id, data) => {
    const box = document.getElementById(id);
    const sel = getSelection();
    if (!sel.isCollapsed && box.contains(sel.anchorNode)) return;
    const keep = el => el && el.dataset.keep;
    const again = name => $$('[data-keep]', box).find(a => a.dataset.keep === name);
    const focused = box.contains(document.activeElement) && keep(document.activeElement);
    const picked = keep($('.picked [data-keep]', box));
    box.replaceChildren(html(data));
    const f = focused && again(focused), p = picked && again(picked);
    if (f) f.focus({ preventScroll: true });
    if (p) pick(p.closest('.pick > *'), false);
  };

  const channel = $('#channel');
  const maxLines = 1000;
  if (channel) {
    const newer = $('#newer');
    let newest = 0, stick = true, due = 0;
    const atEnd = () => channel.scrollHeight - channel.scrollTop - channel.clientHeight < 30;
    const toEnd = () => { channel.scrollTop = channel.scrollHeight; newer.hidden = true; stick = true; };
    channel.addEventListener('scroll', () => { stick = atEnd(); if (stick) newer.hidden = true; });
    newer.addEventListener('click', toEnd);
    new ResizeObserver(() => { if (stick) toEnd(); }).observe(channel);
    const put = node => {
      channel.append(node);
      while (channel.children.length > maxLines) channel.firstChild.remove();
      if (!stick) newer.hidden = false;
      else if (!due) due = requestAnimationFrame(() => { due = 0; if (stick) toEnd(); }); // once for all lines of a frame
    };
    const item = inner => { const li = document.createElement('li'); li.append(inner); return li; };
    channel.put = inner => { stick = true; const li = item(inner); put(li); return li; };
    const note = text => { const li = document.createElement('li'); li.className = 'gap'; li.textContent = text; put(li); };
    const started = Date.now();
    const add = data => {
      const li = html(data).firstElementChild, n = +li.dataset.n;
      const old = document.getElementById(li.id);
      if (old) { old.replaceWith(li); return; }
      if (n <= newest) return; // it scrolled out
      if (newest && n > newest + 1) note((n - newest - 1) + ' lines are not here: see audit');
      newest = n;
      if (Date.now() - started > 3000) { li.classList.add('new'); setTimeout(() => li.classList.remove('new'), 1500); }
      put(li);
    };
    const anew = text => { channel.replaceChildren(); newest = 0; stick = true; note(text); };
    live('/events', {
      line: add, again: add, gap: note, anew,
      'piece-state': d => swap('state', d), 'piece-glance': d => swap('glance', d), 'piece-detail': d => swap('detail', d),
    }, { state: connection });
  }

  // ---- the log of a build ----

  const log = $('#log');
  if (log) {
    const box = $('#attempts'), tail = $('#tail'), told = $('#log-state');
    const maxLength = 4e6; // of letters kept of one attempt
    const section = n => $('#attempt-' + n, box);
    // Chunks stand in the order of their numbers, whatever the order in which
    // they come; one that is here is replaced, so none is here twice.
    const put = data => {
      const c = JSON.parse(data), pre = $('.log', section(c.a));
      const span = document.createElement('span');
      span.dataset.n = c.n;
      span.append(html(c.html));
      let before = pre.lastElementChild;
      while (before && +before.dataset.n > c.n) before = before.previousElementSibling;
      if (before && +before.dataset.n === c.n) before.replaceWith(span);
      else if (before) before.after(span);
      else pre.prepend(span);
      const first = pre.firstElementChild;
      for (const s of [span, span.nextElementSibling]) {
        if (s) s.classList.toggle('torn', s !== first && +s.previousElementSibling.dataset.n !== s.dataset.n - 1);
      }
      pre.letters = (pre.letters || 0) + span.textContent.length;
      while (pre.letters > maxLength && pre.children.length > 1) {
        pre.letters -= pre.firstElementChild.textContent.length;
        pre.firstElementChild.remove();
      }
      pre.firstElementChild.classList.toggle('cut', +pre.firstElementChild.dataset.n !== 0);
      if (!pre.due) pre.due = requestAnimationFrame(() => { pre.due = 0; if (tail.checked && !pre.away) pre.scrollTop = pre.scrollHeight; });
    };
    // Who scrolls up reads: the end is not pulled away under their eyes.
    box.addEventListener('scroll', e => { e.target.away = e.target.scrollHeight - e.target.scrollTop - e.target.clientHeight > 40; }, true);
    live(log.dataset.log, {
      attempt: data => {
        const s = html(data).firstElementChild;
        if (section(s.dataset.attempt)) return;
        const after = $$('.attempt', box).find(o => +o.dataset.attempt > +s.dataset.attempt);
        box.insertBefore(s, after || null);
      },
      chunk: put,
      note: text => { told.textContent = text; },
      'piece-build': data => swap('build', data),
      over: () => { told.textContent = 'the build has ended: this is all of its log'; },
    }, { state: connection });
    tail.addEventListener('change', () => { if (tail.checked) $$('.log', box).forEach(p => { p.scrollTop = p.scrollHeight; }); });
  }

  // ---- the prompt ----

  const put = inner => {
    if (channel) return channel.put(inner);
    const box = $('#answers'), div = document.createElement('div');
    div.append(inner);
    box.replaceChildren(div);
    div.scrollIntoView({ block: 'nearest' });
    return div;
  };
  const mint = () => 'page-' + [...crypto.getRandomValues(new Uint8Array(16))].map(b => b.toString(16).padStart(2, '0')).join('');

  let asking = null; // the form that asks for a confirmation
  const settle = () => { asking = null; form.classList.remove('asks'); line.placeholder = 'queue status'; };
  const wait = confirm => {
    asking = confirm;
    form.classList.add('asks');
    line.placeholder = 'yes, or Esc';
    line.focus();
  };
  const cancel = () => {
    if (!asking) return false;
    const p = document.createElement('p');
    p.className = 'note';
    p.textContent = 'not confirmed: nothing was done';
    asking.replaceWith(p);
    settle();
    return true;
  };

  // What was done a moment ago is not done again by a second Enter: it is asked
  // about.
  const done = new Map(), again = 60000;
  const repeated = text => {
    const before = done.get(text);
    if (!before || Date.now() - before.at > again) return false;
    const piece = document.createElement('article'), p = document.createElement('p'), f = document.createElement('form');
    piece.className = 'answer asks';
    p.textContent = '› ' + text + ': this was done ' + Math.round((Date.now() - before.at) / 1000) + ' s ago, as entry ' + before.entry + '. Once more?';
    f.className = 'confirm';
    for (const [name, value] of [['line', text], ['key', mint()], ['confirm', ''], ['csrf', $('[name=csrf]', form).value]]) {
      const i = document.createElement('input');
      i.type = 'hidden'; i.name = name; i.value = value;
      f.append(i);
    }
    const yes = document.createElement('button'), no = document.createElement('button');
    yes.className = 'go'; yes.textContent = 'yes, do it';
    no.type = 'button'; no.className = 'cancel'; no.textContent = 'no';
    f.append(yes, ' ', no);
    piece.append(p, f);
    put(piece);
    wait(f);
    return true;
  };

  // send posts a form to /run, or asks a question, and shows the answer where
  // it stood, or else in the channel. What broke on the way may have acted: it
  // is asked again with the same key.
  const send = async (request, said, where) => {
    const busy = document.createElement('article');
    busy.className = 'answer busy';
    busy.textContent = '› ' + said + ' …';
    const at = where || put(busy);
    if (where) where.replaceChildren(busy);
    let piece;
    try {
      const r = await request();
      if (r.status === 401) return toLogin();
      piece = html(await r.text());
      if (!piece.firstElementChild) throw new Error('empty');
    } catch {
      piece = document.createElement('article');
      piece.className = 'answer bad';
      const p = document.createElement('p'), b = document.createElement('button');
      p.textContent = '› ' + said + ': the connection broke, so it is not known what came of it';
      b.className = 'go';
      b.type = 'button';
      b.textContent = 'ask again with the same key';
      b.addEventListener('click', () => send(request, said, at));
      piece.append(p, b);
    }
    const entry = $('.answer[data-entry]', piece) || piece.dataset && piece.dataset.entry && piece;
    if (entry) done.set(said, { at: Date.now(), entry: entry.dataset.entry });
    at.replaceChildren(piece);
    const confirm = $('form.confirm', at);
    if (confirm) wait(confirm);
    at.scrollIntoView({ block: 'nearest' });
    if (channel) channel.scrollTop = channel.scrollHeight;
  };
  const post = f => {
    const body = new URLSearchParams(new FormData(f));
    return () => fetch('/run', { method: 'POST', body, headers: { 'X-Piece': '1' } });
  };
  const question = text => () => fetch('/ask?line=' + encodeURIComponent(text), { headers: { 'X-Piece': '1' } });

  if (form) {
    const key = $('[name=key]', form), offers = $('#offers'), usage = $('#usage');
    key.value = mint();

    // History, for this tab.
    let past = [], at = 0, draft = '';
    try { past = JSON.parse(sessionStorage.getItem('past')) || []; } catch { past = []; }
    at = past.length;
    const remember = text => {
      if (past[past.length - 1] !== text) past.push(text);
      past = past.slice(-200);
      at = past.length;
      try { sessionStorage.setItem('past', JSON.stringify(past)); } catch { /* full, or not allowed */ }
    };
    const walk = step => {
      if (at === past.length) draft = line.value;
      at = Math.max(0, Math.min(past.length, at + step));
      line.value = at === past.length ? draft : past[at];
      line.setSelectionRange(line.value.length, line.value.length);
    };

    form.addEventListener('submit', e => {
      e.preventDefault();
      shut();
      const text = line.value.trim();
      usage.textContent = '';
      line.value = '';
      if (asking) {
        if (text === 'yes') { confirmed(asking); return; }
        cancel();
        if (!text || text === 'no') return;
      }
      if (!text) return;
      remember(text);
      if (repeated(text)) return;
      line.value = text;
      const request = post(form);
      line.value = '';
      key.value = mint();
      send(request, text);
    });
    const confirmed = f => { const where = f.closest('li, #answers > div, .sheet'); settle(); send(post(f), f.elements.line.value, where); };
    document.addEventListener('submit', e => {
      const f = e.target;
      if (f.classList.contains('confirm') || f.classList.contains('again')) { e.preventDefault(); confirmed(f); }
    });
    document.addEventListener('click', e => {
      if (e.target.closest('.cancel') && asking) { e.preventDefault(); cancel(); line.focus(); return; }
      const a = e.target.closest('[data-ask]');
      if (a && !e.ctrlKey && !e.metaKey && !e.shiftKey) { e.preventDefault(); send(question(a.dataset.ask), a.dataset.ask); }
      const f = e.target.closest('[data-fill]');
      if (f) { e.preventDefault(); line.value = f.dataset.fill; line.focus(); }
    });

    // Completion.
    let found = { words: [] }, chosen = -1, asked = 0, later;
    const shut = () => {
      clearTimeout(later);
      asked++;
      offers.hidden = true;
      offers.replaceChildren();
      chosen = -1;
      line.setAttribute('aria-expanded', 'false');
      line.removeAttribute('aria-activedescendant');
    };
    const ask = async () => {
      const n = ++asked;
      const before = line.value.slice(0, line.selectionStart);
      const r = await fetch('/complete?line=' + encodeURIComponent(before), { headers: { 'X-Piece': '1' } });
      if (!r.ok) throw new Error(r.status);
      const got = await r.json();
      if (n !== asked || before !== line.value.slice(0, line.selectionStart)) return null;
      usage.textContent = got.usage || '';
      return found = got;
    };
    const show = () => {
      offers.replaceChildren(...found.words.map((w, i) => {
        const li = document.createElement('li');
        li.id = 'offer-' + i;
        li.setAttribute('role', 'option');
        li.setAttribute('aria-selected', 'false');
        li.append(w.word);
        if (w.help) { const s = document.createElement('small'); s.textContent = w.help; li.append(s); }
        li.addEventListener('mousedown', e => { e.preventDefault(); take(w.word, true); });
        return li;
      }));
      offers.hidden = !found.words.length;
      line.setAttribute('aria-expanded', String(!offers.hidden));
      chosen = -1;
    };
    const choose = i => {
      chosen = (i + found.words.length) % found.words.length;
      $$('li', offers).forEach((li, j) => li.setAttribute('aria-selected', String(j === chosen)));
      line.setAttribute('aria-activedescendant', 'offer-' + chosen);
      $('#offer-' + chosen).scrollIntoView({ block: 'nearest' });
    };
    const take = (word, whole) => {
      const end = line.selectionStart, rest = line.value.slice(end);
      const done = line.value.slice(0, found.from) + word + (whole && !rest.startsWith(' ') ? ' ' : '');
      line.value = done + rest;
      line.setSelectionRange(done.length, done.length);
      if (whole) shut();
    };
    const tab = async () => {
      let got;
      try { got = await ask(); } catch { return; }
      if (!got || !got.words.length) { shut(); return; }
      let common = got.words[0].word;
      for (const w of got.words) while (!w.word.startsWith(common)) common = common.slice(0, -1);
      if (got.words.length === 1) { take(common, true); return; }
      const more = common.length > line.selectionStart - got.from;
      if (more) take(common, false);
      show();
      if (!more) choose(0);
    };
    line.addEventListener('input', () => {
      shut();
      // While somebody types, what fits is offered after a moment.
      later = setTimeout(() => { if (!asking && line.value.trim()) ask().then(got => { if (got && document.activeElement === line) show(); }).catch(() => {}); }, 120);
      if (!line.value.trim()) usage.textContent = '';
    });
    line.addEventListener('blur', () => setTimeout(shut, 150));
    line.addEventListener('keydown', e => {
      const open = !offers.hidden;
      if (e.key === 'Tab' && !e.shiftKey && !e.ctrlKey && line.value) {
        e.preventDefault();
        if (open && chosen >= 0) take(found.words[chosen].word, true);
        else tab();
      } else if (e.key === 'ArrowDown' || e.key === 'ArrowUp') {
        e.preventDefault();
        if (open && (chosen >= 0 || e.key === 'ArrowDown')) choose(chosen < 0 ? 0 : chosen + (e.key === 'ArrowDown' ? 1 : -1));
        else { shut(); walk(e.key === 'ArrowUp' ? -1 : 1); }
      } else if (e.key === 'Enter' && open && chosen >= 0) {
        e.preventDefault();
        take(found.words[chosen].word, true);
      } else if (e.key === 'Escape') {
        e.preventDefault();
        e.stopPropagation();
        if (open) shut();
        else if (cancel()) { /* the plan is off */ } else if (line.value) { line.value = ''; usage.textContent = ''; } else line.blur();
      }
    });
  }

  // ---- keys ----

  const pick = (el, scroll = true) => {
    $$('.picked').forEach(p => p.classList.remove('picked'));
    el.classList.add('picked');
    if (scroll) el.scrollIntoView({ block: 'nearest' });
    const a = $('a', el);
    if (scroll && a) a.focus({ preventScroll: true });
  };
  const lists = () => $$('.pick').filter(l => l.children.length && l.offsetParent);
  const move = step => {
    const now = $('.picked');
    const list = now ? now.closest('.pick') : lists()[0];
    if (!list) return;
    const rows = [...list.children].filter(r => !r.classList.contains('none'));
    if (!rows.length) return;
    const i = rows.indexOf(now);
    pick(rows[i < 0 ? (step > 0 && list !== channel ? 0 : rows.length - 1) : Math.max(0, Math.min(rows.length - 1, i + step))]);
  };
  let chord = 0;
  document.addEventListener('keydown', e => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing) return;
    const typing = e.target.matches('input, select, textarea');
    const dialog = $('#keys');
    if (e.key === 'Escape') {
      if (typing && e.target !== line) e.target.blur();
      $$('.picked').forEach(p => p.classList.remove('picked'));
      if (!typing) cancel();
      return;
    }
    if (typing || dialog && dialog.open) return;
    if (Date.now() - chord < 1200) {
      chord = 0;
      const to = { c: '/', b: '/builds', a: '/audit' }[e.key];
      if (to) { e.preventDefault(); location.href = to; return; }
    }
    switch (e.key) {
      case '/': if (line) { e.preventDefault(); line.focus(); } break;
      case '?': if (dialog) { e.preventDefault(); dialog.showModal(); } break;
      case 'j': e.preventDefault(); move(1); break;
      case 'k': e.preventDefault(); move(-1); break;
      case 'g': chord = Date.now(); break;
    }
  });
})();

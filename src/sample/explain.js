// Reads the last answer's Cache-Status (RFC 9211): one member for each cache on the way, the origin's side first.
const text = (id, value) => { document.getElementById(id).textContent = value }

function explain(response) {
  const status = response.headers.get('cache-status') ?? ''
  const members = status.split(',').map(m => m.trim()).filter(Boolean)
  const edge = members.at(-1) ?? ''
  const shield = members.length > 1 ? members.at(-2) : ''
  const hit = member => /;\s*hit/.test(member)
  const edgeHit = hit(edge)
  const shieldHit = !edgeHit && hit(shield)
  const words = m => hit(m) ? 'hit: answered from its memory' : (m.match(/fwd=[a-z-]+/)?.[0].replace('fwd=', 'asked on: ') ?? 'not asked')
  text('edge', words(edge))
  text('shield', edgeHit ? 'not asked' : shield ? words(shield) : 'none on this way')
  text('origin', edgeHit || shieldHit ? 'not asked' : 'answered')
  const answered = edgeHit ? 1 : shieldHit ? 2 : 3
  document.querySelectorAll('#way li').forEach((li, n) => {
    li.classList.toggle('answered', n === answered)
    li.classList.toggle('passed', n > answered)
  })
  text('status', status || 'none')
  text('age', `${response.headers.get('age') ?? '0'} s`)
}

const ask = () => fetch('/hello.txt', { cache: 'no-store' }).then(explain)
document.getElementById('again').addEventListener('click', ask)
ask()
